// What is open, what is selected, and how the two change.

const state = { scope: 0, colour: "plain", selected: null, preview: null };
const byPath = new Map(DATA.scopes.map((scope, s) => [scope.p, s]));
const unfolded = new Set([0]);

const view = () => DATA.scopes[state.scope];
const isCard = (key) => (card) =>
  key && ((key.v !== undefined && card.v === key.v && card.s === undefined) || (key.e !== undefined && card.e === key.e));

// Opening

function ancestors(s) {
  const chain = [];
  for (; s >= 0; s = DATA.scopes[s].u) chain.unshift(s);
  return chain;
}

function open(s, { select = null, from = null, write = true, fade = "in" } = {}) {
  const deeper = from !== null;
  const show = () => {
    state.scope = s;
    state.selected = select;
    ancestors(s).forEach((a) => unfolded.add(a));
    drawView(view());
    const to = fitted(view());
    if (deeper || from === null) place({ k: to.k * (deeper ? 0.86 : 1.1), x: to.x, y: to.y });
    refresh();
    fly(to, () => select && revealSelected(), fade);
    if (write) writeHash();
  };
  if (!deeper || still.matches) return show();
  const { width, height } = picture.getBoundingClientRect();
  const k = Math.min(width / from.w, height / from.h, at.k * 4);
  fly({ k, x: width / 2 - k * from.x, y: height / 2 - k * from.y }, show, "out");
}

function up() {
  if (state.scope === 0) return;
  const child = state.scope;
  open(DATA.scopes[child].u);
  const index = view().cards.findIndex((card) => card.s === child);
  if (index >= 0) cardElement(index).focus({ preventScroll: true });
}

// Selecting

function refresh() {
  paint();
  crumbs();
  overview();
  mark();
  showPanel(state.selected ? aboutSelected() : aboutScope(state.scope) + HELP);
}

function aboutSelected() {
  const card = view().cards.find(isCard(state.selected));
  if (state.selected.e !== undefined && card?.e !== state.selected.e) return aboutEquation(state.selected.e);
  return card ? aboutCard(card) : aboutVariable(state.selected.v);
}

function mark() {
  const chosen = view().cards.findIndex(isCard(state.shown || state.selected));
  world.querySelectorAll(".chosen").forEach((element) => element.classList.remove("chosen"));
  if (chosen >= 0) cardElement(chosen).classList.add("chosen");
  const wires = world.querySelectorAll(".wire");
  view().wires.forEach((wire, i) => wires[i].classList.toggle("lit", wire.a === chosen || wire.b === chosen));
}

function select(key, shown = null) {
  state.selected = key;
  state.shown = shown;
  mark();
  showPanel(key ? aboutSelected() : aboutScope(state.scope) + HELP);
  writeHash();
}

function revealSelected() {
  const card = view().cards.find(isCard(state.shown || state.selected));
  if (card) reveal(card);
}

// Goes to an equation ("e12"), a variable ("v3") or a scope ("s4"), wherever it is drawn.
function go(target) {
  const kind = target[0], index = Number(target.slice(1));
  if (kind === "s") return open(index);
  if (kind === "v" && MAKER[index] < 0) {
    const home = DATA.scopes.findIndex((s) => s.cards.some((c) => c.v === index && c.k === "leaf"));
    if (home >= 0 && home !== state.scope) return open(home, { select: { v: index } });
    select({ v: index });
    return revealSelected();
  }
  const e = kind === "v" ? MAKER[index] : index;
  const [home, drawn] = DATA.equations[e].d || [state.scope, e];
  state.shown = drawn === e ? null : { e: drawn };
  if (home !== state.scope) return open(home, { select: { e } });
  select({ e }, state.shown);
  revealSelected();
}

function act(index, jump) {
  const card = view().cards[index];
  if (card.k === "scope") return open(card.s, { from: card });
  if (card.k === "stub" && jump) return card.side === "in" ? go(`v${card.v}`) : card.go >= 0 && open(card.go);
  const key = card.e !== undefined ? { e: card.e } : { v: card.v };
  const same = state.selected && isCard(state.selected)(card);
  select(same ? null : key);
}

// Breadcrumbs and the list of scopes

function crumbs() {
  const chain = ancestors(state.scope);
  $("crumbs").innerHTML = chain.map((s, i) => {
    const here = i === chain.length - 1 ? ' aria-current="page"' : "";
    return `<button type="button" data-go="s${s}"${here}>${escaped(DATA.scopes[s].n || DATA.title)}</button>`;
  }).join("<i>/</i>");
}

function overview() {
  const inside = new Map();
  DATA.scopes.forEach((scope, s) => inside.set(scope.u, [...(inside.get(scope.u) || []), s]));
  const measure = { memory: (s) => s.kept, flops: (s) => s.flops }[state.colour];
  const rows = [];
  const add = (s, depth) => {
    const scope = DATA.scopes[s], children = inside.get(s) || [], isOpen = unfolded.has(s);
    const twist = children.length ? `<span class="twist" data-twist="${s}">${isOpen ? "▼" : "▶"}</span>` : '<span class="twist"></span>';
    const count = state.colour === "memory" ? bytes(scope.kept) : state.colour === "flops" ? amount(scope.flops) : scope.e.length;
    const part = measure && measure(DATA.scopes[0]) ? measure(scope) / measure(DATA.scopes[0]) : 0;
    const bar = part ? `<span class="bar" style="--tint:${TINT[state.colour]};width:calc((100% - 16px) * ${part.toFixed(4)})"></span>` : "";
    rows.push(`<button type="button" class="row" data-go="s${s}" aria-current="${s === state.scope}" style="padding-left:${8 + 13 * depth}px">
      ${twist}<span class="label">${escaped(scope.n || DATA.title)}</span><span class="count">${count}</span>${bar}</button>`);
    if (isOpen) children.forEach((child) => add(child, depth + 1));
  };
  add(0, 0);
  const top = $("overview").scrollTop;
  $("overview").innerHTML = rows.join("");
  $("overview").scrollTop = top;
  $("overview").querySelector('[aria-current="true"]')?.scrollIntoView({ block: "nearest" });
}

// Finding by name

const INDEX = [
  ...DATA.scopes.map((s, i) => [s.p, `s${i}`, "scope"]).slice(1),
  ...DATA.variables.map((v, i) => [v.n, `v${i}`, v.t]).filter(([, target]) => {
    const e = MAKER[Number(target.slice(1))];
    return e < 0 || DATA.variables[Number(target.slice(1))].m;
  }),
  ...DATA.equations.map((q, i) => [`${q.y.map((v) => DATA.variables[v].n).join(", ")} = ${q.o}`, `e${i}`, q.s || q.w || ""]),
];

// The words of a name: those of "params['blocks'][7].up" are params, blocks, 7, up.
const wordsOf = (name) => name.toLowerCase().split(/[\s'"[\]./]+/).filter(Boolean);

function find(text) {
  const wanted = text.trim().toLowerCase(), words = wordsOf(text), found = [];
  if (wanted) {
    for (const entry of INDEX) {
      const name = entry[0].toLowerCase(), at = name.indexOf(wanted);
      if (at >= 0) found.push([at + name.length / 100, entry]);
      else if (words.length > 1 && words.every((word) => wordsOf(name).some((has) => has.startsWith(word)))) {
        found.push([1000 + name.length / 100, entry]);
      }
    }
  }
  found.sort((a, b) => a[0] - b[0]);
  const list = $("found");
  list.innerHTML = found.slice(0, 30).map(([, [name, target, what]], i) =>
    `<li role="option" data-go="${target}" aria-selected="${i === 0}"><b>${escaped(name)}</b><span>${escaped(what)}</span></li>`).join("");
  if (wanted && !found.length) list.innerHTML = '<li aria-disabled="true"><span>nothing of that name</span></li>';
  list.hidden = !wanted;
}

function closeSearch() {
  $("search").value = "";
  $("found").hidden = true;
}

$("search").addEventListener("input", (event) => find(event.target.value));
$("search").addEventListener("blur", () => setTimeout(() => ($("found").hidden = true), 150));
$("search").addEventListener("keydown", (event) => {
  const options = [...$("found").children], now = options.findIndex((o) => o.ariaSelected === "true");
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const next = options[(now + (event.key === "ArrowDown" ? 1 : options.length - 1)) % options.length];
    options.forEach((o) => (o.ariaSelected = String(o === next)));
    next?.scrollIntoView({ block: "nearest" });
    event.preventDefault();
  } else if (event.key === "Enter" && options[now]?.dataset.go) {
    go(options[now].dataset.go);
    closeSearch();
    event.target.blur();
  } else if (event.key === "Escape") closeSearch(), event.target.blur();
  event.stopPropagation();
});

// Pointer and keys

document.addEventListener("click", (event) => {
  const twist = event.target.closest("[data-twist]");
  if (twist) {
    const s = Number(twist.dataset.twist);
    unfolded.has(s) ? unfolded.delete(s) : unfolded.add(s);
    return overview();
  }
  const target = event.target.closest("[data-go]");
  if (target) {
    go(target.dataset.go);
    return closeSearch();
  }
  if (!picture.contains(event.target) || picture.dataset.dragged) return;
  const card = event.target.closest(".card");
  if (card) act(Number(card.dataset.card), false);
  else if (state.selected) select(null);
});
picture.addEventListener("dblclick", (event) => {
  const card = event.target.closest(".card");
  if (card && view().cards[card.dataset.card]?.k === "stub") act(Number(card.dataset.card), true);
});
picture.addEventListener("pointerover", (event) => {
  if (fingers.size) return;
  const card = event.target.closest(".card"), wire = event.target.closest(".reach");
  if (card) showPanel(aboutCard(view().cards[card.dataset.card]));
  else if (wire) showPanel(aboutWire(view().wires[wire.dataset.wire]));
  else if (state.preview) showPanel(state.selected ? aboutSelected() : aboutScope(state.scope) + HELP);
  state.preview = card || wire;
});

function nearest(index, dx, dy) {
  const { cards } = view(), here = cards[index];
  let best = -1, least = Infinity;
  cards.forEach((card, i) => {
    const x = card.x - here.x, y = card.y - here.y, along = x * dx + y * dy, beside = Math.abs(x * dy) + Math.abs(y * dx);
    if (i !== index && along > 4 && along + 2 * beside < least) [best, least] = [i, along + 2 * beside];
  });
  return best;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const card = event.target.closest?.(".card"), index = card ? Number(card.dataset.card) : -1;
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key === "/") $("search").focus();
  else if (event.key === "Escape") state.selected ? select(null) : up();
  else if (event.key === "Backspace") up();
  else if (event.key === "+" || event.key === "=") zoomBy(1.25);
  else if (event.key === "-") zoomBy(0.8);
  else if (event.key === "0") fly(fitted(view()));
  else if (index >= 0 && (event.key === "Enter" || event.key === " ")) act(index, event.key === "Enter");
  else if (arrows[event.key] && (card || document.activeElement === document.body)) {
    const next = card ? nearest(index, ...arrows[event.key]) : 0;
    if (next >= 0) cardElement(next).focus({ preventScroll: true }), reveal(view().cards[next]);
  } else return;
  event.preventDefault();
});
world.addEventListener("focusin", (event) => {
  const card = event.target.closest(".card");
  if (card?.matches(":focus-visible")) showPanel(aboutCard(view().cards[card.dataset.card]));
});
$("zoom").addEventListener("click", (event) => {
  const action = event.target.dataset.do;
  if (action === "fit") fly(fitted(view()));
  else if (action) zoomBy(action === "in" ? 1.25 : 0.8);
});

// Colours and theme

function colourBy(mode) {
  state.colour = mode in MODES ? mode : "plain";
  $("modes").innerHTML = Object.entries(MODES).map(([key, label]) =>
    `<button type="button" role="radio" data-mode="${key}" aria-checked="${key === state.colour}">${label}</button>`).join("");
}

$("modes").addEventListener("click", (event) => {
  if (!event.target.dataset.mode) return;
  colourBy(event.target.dataset.mode);
  paint();
  overview();
  writeHash();
});

function theme(name) {
  document.documentElement.dataset.theme = name;
}

const darkness = matchMedia("(prefers-color-scheme: dark)");
darkness.addEventListener("change", () => theme(darkness.matches ? "dark" : "light"));
$("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));

// The address: #open=encoder/block_2&colour=memory&select=h

function readHash() {
  const wish = new URLSearchParams(location.hash.slice(1));
  theme(wish.get("theme") || document.documentElement.dataset.theme || (darkness.matches ? "dark" : "light"));
  colourBy(wish.get("colour") || "plain");
  const name = wish.get("select");
  const v = name === null ? -1 : DATA.variables.findIndex((x) => x.n === name);
  const path = wish.get("open");
  if (path === null && v >= 0) {
    open(0, { write: false, fade: "none" });
    return go(`v${v}`);
  }
  open(byPath.get(path || "") ?? 0, { select: v < 0 ? null : MAKER[v] >= 0 ? { e: MAKER[v] } : { v }, write: false, fade: "none" });
}

let written = "";
function writeHash() {
  const parts = [];
  if (state.scope) parts.push(`open=${encodeURI(view().p).replace(/[&#+]/g, encodeURIComponent)}`);
  if (state.colour !== "plain") parts.push(`colour=${state.colour}`);
  const v = state.selected ? state.selected.v ?? DATA.equations[state.selected.e].y[0] : undefined;
  if (v !== undefined && DATA.variables[v]) parts.push(`select=${encodeURIComponent(DATA.variables[v].n)}`);
  written = parts.length ? `#${parts.join("&")}` : "#";
  try {
    if ((location.hash || "#") !== written) history.pushState(null, "", written);
  } catch { /* a page inside another may have no address of its own */ }
}

document.body.classList.toggle("single", DATA.scopes.length === 1);
addEventListener("popstate", readHash);
addEventListener("resize", () => place(fitted(view())));
readHash();
