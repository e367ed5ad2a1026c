"use strict";
// The picture of a scope: cards, frames, wires, pan and zoom.

const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const picture = $("picture"), world = $("world");
const BASE = 0.33; // of a text's size: how far below its middle letters stand
const MOST_MOVING = 400; // cards; more of them change their places at once
const still = matchMedia("(prefers-reduced-motion: reduce)");

const escaped = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

function svg(tag, attributes, inside = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (/[<&]/.test(inside)) element.innerHTML = inside;
  else if (inside) element.textContent = inside; // much faster
  return element;
}

// What a card says: [value, gradient].
function linesOf(card) {
  if (card.t) return card.t;
  const variable = DATA.variables[card.v];
  return variable ? [variable.v?.[0] ?? "", variable.g?.[0] ?? ""] : ["", ""];
}

function text(role, x, y, size, inside) {
  return svg("text", { class: role, x, y: (y + BASE * size).toFixed(1), "font-size": size }, inside);
}

function drawCard(card, index) {
  const { x, y, w, h } = card, left = x - w / 2, top = y - h / 2;
  const [value, gradient] = linesOf(card);
  const group = svg("g", {
    class: `card ${card.k}`, tabindex: 0, role: "button", "data-card": index,
    "aria-label": spoken(card, value, gradient),
  });
  if (card.s !== undefined) group.setAttribute("aria-expanded", card.k === "frame");
  if (card.k === "frame") return drawFrame(group, card, left, top);
  const body = (role, dx = 0, dy = 0) =>
    svg("rect", { class: role, x: left + dx, y: top + dy, width: w, height: h, rx: 7 });
  if (card.k === "scope") group.append(body("sheet", 4, 4));
  group.append(body("body"));
  if (card.k === "scope") drawScope(group, card, left, top, value, gradient);
  else drawNode(group, card, left, top, value, gradient);
  group.append(body("rim"));
  if (/NaN|∞/.test(value + gradient)) {
    group.classList.add("bad");
  }
  return group;
}

function drawScope(group, card, left, top, value, gradient) {
  const { w, h, cell } = card, middle = top + h / 2, rows = Boolean(value) + Boolean(gradient);
  if (rows) {
    group.append(side(left + cell, top, w - cell, h));
    group.append(svg("line", { class: "edge", x1: left + cell, x2: left + cell, y1: top + 0.5, y2: top + h - 0.5 }));
  }
  group.append(text("title", left + cell / 2 - 7, middle - 8, 14, card.sign));
  group.append(text("note", left + cell / 2, middle + 9, 10, card.cap));
  const at = left + cell - 13, y = middle - 8;
  group.append(svg("path", { class: "open", d: `M${at - 4},${y}h8M${at},${y - 4}v8` }));
  drawLines(group, left + cell + (w - cell) / 2, middle - (rows - 1) * 7.5, card, value, gradient);
}

// An opened scope: its title bar, with what closes it and what shows it alone. What is in it is
// drawn after it, by drawPicture.
function drawFrame(group, card, left, top) {
  const { w, h } = card, r = 9.5, middle = top + TITLE / 2;
  const bar = `M${left + 0.5},${top + TITLE}v${r - TITLE + 0.5}a${r},${r} 0 0 1 ${r},${-r}h${w - 2 * r - 1}a${r},${r} 0 0 1 ${r},${r}v${TITLE - r - 0.5}z`;
  group.append(svg("path", { class: "bar", d: bar }));
  const control = (name, x, d, title) => {
    const part = svg("g", { class: "control", "data-do": name }, `<title>${title}</title>`);
    part.append(svg("rect", { x: x - 10, y: middle - 10, width: 20, height: 20, rx: 5 }));
    part.append(svg("path", { class: "open", d: `M${x},${middle}${d}` }));
    group.append(part);
  };
  control("close", left + 17, "m-4.5,0h9", "Close (Enter)");
  control("alone", left + 39, "m1,-1l3.5,-3.5m-3.5,0h3.5v3.5m-5.5,2l-3.5,3.5m0,-3.5v3.5h3.5", "This scope alone (Shift+Enter)");
  group.append(text("title heading", left + 55, middle, 14, `${card.sign}<tspan class="note" dx="9" font-size="10" font-weight="400">${card.cap || ""}</tspan>`));
  group.append(svg("rect", { class: "rim", x: left, y: top, width: w, height: h, rx: 10 }));
  return group;
}

// The right part of a card, rounded at its right corners.
function side(x, y, w, h) {
  const r = 6.5;
  return svg("path", {
    class: "side",
    d: `M${x},${y + 0.5}H${x + w - 0.5 - r}a${r},${r} 0 0 1 ${r},${r}V${y + h - 0.5 - r}a${r},${r} 0 0 1 ${-r},${r}H${x}z`,
  });
}

function drawNode(group, card, left, top, value, gradient) {
  const { w, h } = card, cell = card.cell || 0, foot = card.cap ? 14 : 0;
  const inner = h - foot, middle = top + inner / 2;
  const only = !value && !gradient;
  if (cell) {
    const width = only ? w : cell, r = 6.5, l = left + 0.5, t = top + 0.5, b = top + h - 0.5;
    const right = left + width - (only ? 0.5 : 0);
    const shape = only
      ? `M${l + r},${t}H${right - r}a${r},${r} 0 0 1 ${r},${r}V${b - r}a${r},${r} 0 0 1 ${-r},${r}H${l + r}`
      : `M${l + r},${t}H${right}V${b}H${l + r}`;
    group.append(svg("path", { class: "cell", d: `${shape}a${r},${r} 0 0 1 ${-r},${-r}V${t + r}a${r},${r} 0 0 1 ${r},${-r}z` }));
    if (!only && card.k !== "stub") {
      group.append(svg("line", { class: "edge", x1: right, x2: right, y1: top + 0.5, y2: top + h - 0.5 }));
    }
    group.append(text("sign", left + width / 2, middle, 14, card.sign));
  }
  const rows = Boolean(value) + Boolean(gradient);
  drawLines(group, left + cell + (w - cell) / 2, middle - (rows - 1) * 7.5, card, value, gradient);
  if (card.cap) group.append(text("note", card.x, top + h - 11, 10, card.cap));
}

function drawLines(group, x, y, card, value, gradient) {
  const name = card.name ? `<tspan class="ink">${card.name}</tspan>` : "";
  if (value || name) group.append(text("value", x, y, 11, name + escaped(value)));
  if (gradient) group.append(text("gradient", x, value ? y + 15 : y, 11, escaped(gradient)));
}

function spoken(card, value, gradient) {
  const plain = (markup) => (markup || "").replace(/<[^>]*>/g, "");
  const parts = [plain(card.name).replace(/ = $/, ""), plain(card.sign), plain(card.cap)];
  if (value) parts.push(`value ${value}`);
  if (gradient) parts.push(`gradient ${gradient}`);
  if (card.s !== undefined) parts.push(card.k === "frame" ? "closes" : "opens");
  return parts.filter(Boolean).join(", ");
}

// Draws what composed() made; its cards are answered for by page.js. What an opened scope holds is
// drawn over its frame.
let shown = { w: 1, h: 1, cards: [], wires: [], levels: [] }, cardElements = [], wireElements = [];

function drawPicture(next) {
  shown = next;
  wireElements = shown.wires.map((wire) => svg("path", { class: wireClass(wire), d: wire.d }));
  cardElements = shown.cards.map(drawCard);
  world.replaceChildren(...shown.levels.map((level, depth) => {
    const group = svg("g", { class: depth ? "level inside" : "level" }), wires = svg("g", { class: "wires" });
    for (let i = level.wires[0]; i < level.wires[1]; i++) {
      wires.append(svg("path", { class: "reach", d: shown.wires[i].d, "data-wire": i }), wireElements[i]);
    }
    group.append(wires);
    for (const [x, y, width, height] of level.twins) group.append(svg("rect", { class: "twins", x, y, width, height, rx: 10 }));
    for (let i = level.cards[0]; i < level.cards[1]; i++) {
      const { k, x, y, w, h } = shown.cards[i];
      if (k === "frame") group.append(svg("rect", { class: "ground", x: x - w / 2, y: y - h / 2, width: w, height: h, rx: 10 }));
      group.append(cardElements[i]);
    }
    return group;
  }));
  drawMap();
}

const wireClass = (wire) =>
  `wire${wire.v.length > 1 ? " many" : ""}${wire.far ? " far" : ""}${wire.inner ? " inner" : ""}`;

// After a change, what was there before moves from where it was, and what is new appears.
function moveFrom(former) {
  if (still.matches || document.hidden || shown.cards.length > MOST_MOVING) return;
  const timing = { duration: 200, easing: "cubic-bezier(0.33, 1, 0.68, 1)" };
  const appear = (element) => element.animate([{ opacity: 0 }, { opacity: 0, offset: 0.4 }, {}], timing);
  const places = new Map(former.cards.map((card) => [card.id, card]));
  shown.cards.forEach((card, i) => {
    const old = places.get(card.id), parts = [cardElements[i]];
    if (card.k === "frame") parts.push(cardElements[i].previousSibling); // its ground
    if (!old || old.k !== card.k) return parts.forEach(appear);
    const [dx, dy] = card.k === "frame" // its corner is what moves
      ? [old.x - old.w / 2 - card.x + card.w / 2, old.y - old.h / 2 - card.y + card.h / 2] : [old.x - card.x, old.y - card.y];
    if (!dx && !dy) return;
    parts.forEach((part) => part.animate([{ transform: `translate(${dx}px, ${dy}px)` }, { transform: "none" }], timing));
  });
  world.querySelectorAll(".wires, .twins").forEach(appear);
}

// Pan and zoom: `at` is the scale and the place of the world's origin on the screen.

let at = { k: 1, x: 0, y: 0 }, flight = 0;
let room = picture.getBoundingClientRect(); // kept: asking for it lays the page out

function place(next) {
  at = next;
  world.setAttribute("transform", `translate(${at.x.toFixed(2)} ${at.y.toFixed(2)}) scale(${at.k.toFixed(4)})`);
  moveMap();
}

function fitted(view) {
  const { width, height } = room;
  const whole = Math.min((width - 56) / view.w, (height - 48) / view.h);
  const wide = view.w * (height - 48) > view.h * (width - 56);
  const k = whole >= (wide ? 0.28 : 0.42) ? Math.min(1.5, whole) : Math.max(whole, Math.min(0.85, Math.max((width - 56) / view.w, 0.5)));
  // what is too large to be read as a whole is shown from its beginning
  const at = (room, size, edge) => (k * size <= room - edge + 1 ? (room - k * size) / 2 : edge / 2);
  let x = at(width, view.w, 56);
  if (k * view.w > width && k * view.h > height) {
    const first = view.cards.reduce((a, b) => (b.y - b.h / 2 < a.y - a.h / 2 ? b : a));
    x = Math.min(28, Math.max(width - 28 - k * view.w, width / 2 - k * spot(first).x));
  }
  return { k, x, y: at(height, view.h, 48) };
}

// Shows all of it; `rest` is where the picture then is, as long as nobody moves it.
let rest = null;

function fit() {
  rest = fitted(shown);
  return rest;
}

function fly(to, done, fade) {
  cancelAnimationFrame(flight);
  if (still.matches || document.hidden || fade === "none") {
    world.style.opacity = 1;
    place(to);
    done?.();
    return;
  }
  const from = at, start = performance.now(), time = 210;
  const step = (now) => {
    const part = Math.min(1, Math.max(0, now - start) / time), ease = 1 - (1 - part) ** 3;
    const mix = (key) => from[key] + (to[key] - from[key]) * ease;
    place({ k: mix("k"), x: mix("x"), y: mix("y") });
    if (fade) world.style.opacity = fade === "out" ? 1 - ease : ease;
    if (part < 1) {
      flight = requestAnimationFrame(step);
      return;
    }
    place(to);
    done?.();
  };
  flight = requestAnimationFrame(step);
}

function zoomBy(factor, x, y) {
  const box = picture.getBoundingClientRect();
  const px = x === undefined ? box.width / 2 : x - box.left, py = y === undefined ? box.height / 2 : y - box.top;
  const k = Math.min(6, Math.max(0.08, at.k * factor)), f = k / at.k;
  place({ k, x: px - (px - at.x) * f, y: py - (py - at.y) * f });
}

// The part of a card that is brought into sight: of a frame, its title.
function spot({ k, x, y, w, h }) {
  if (k !== "frame") return { x, y, w, h };
  const width = Math.min(w, 200);
  return { x: x - w / 2 + width / 2, y: y - h / 2 + TITLE / 2, w: width, h: TITLE };
}

// Where the picture is to be so that a box of it is seen, moved no more than is needed. What is too
// large for the window is shown from its left and from its top.
function sighted({ x, y, w, h }, from = at, edge = 40) {
  const { width, height } = room, { k } = from;
  const shift = (low, high, size) =>
    low < edge || high - low > size - 2 * edge ? edge - low : high > size - edge ? size - edge - high : 0;
  const left = from.x + k * (x - w / 2), top = from.y + k * (y - h / 2);
  return { k, x: from.x + shift(left, left + k * w, width), y: from.y + shift(top, top + k * h, height) };
}

function reveal(card) {
  const to = sighted(spot(card));
  if (to.x !== at.x || to.y !== at.y) fly(to);
}

new ResizeObserver(() => {
  room = picture.getBoundingClientRect();
  at === rest ? place(fit()) : moveMap();
}).observe(picture);

// Brings a card into the middle, large enough to be read.
function center(card) {
  const k = Math.max(at.k, 0.8);
  fly({ k, x: room.width / 2 - k * card.x, y: room.height / 2 - k * card.y });
}

const fingers = new Map();
picture.addEventListener("wheel", (event) => {
  event.preventDefault();
  const step = event.deltaMode ? event.deltaY * 16 : event.deltaY;
  if (event.shiftKey) place({ ...at, x: at.x - step });
  else zoomBy(Math.exp(-step * (event.ctrlKey ? 0.01 : 0.0016)), event.clientX, event.clientY);
}, { passive: false });
picture.addEventListener("pointerdown", (event) => {
  fingers.set(event.pointerId, [event.clientX, event.clientY]);
  picture.dataset.dragged = "";
});
picture.addEventListener("pointermove", (event) => {
  const before = fingers.get(event.pointerId);
  if (!before) return;
  const dx = event.clientX - before[0], dy = event.clientY - before[1];
  if (!picture.dataset.dragged && Math.hypot(dx, dy) < 4) return;
  if (!picture.dataset.dragged) picture.setPointerCapture(event.pointerId);
  picture.dataset.dragged = "yes";
  picture.classList.add("moving");
  if (fingers.size === 2) {
    const [, other] = [...fingers].find(([id]) => id !== event.pointerId);
    const far = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]);
    zoomBy(far([event.clientX, event.clientY]) / Math.max(1, far(before)), other[0], other[1]);
  } else place({ ...at, x: at.x + dx, y: at.y + dy });
  fingers.set(event.pointerId, [event.clientX, event.clientY]);
});
for (const end of ["pointerup", "pointercancel"]) {
  picture.addEventListener(end, (event) => {
    fingers.delete(event.pointerId);
    picture.classList.remove("moving");
  });
}
