// Scopes opened in place: how a picture makes room for what is inside a card.
//
// Every scope has a view that was laid out beforehand, in which the scopes inside are closed cards.
// An opened card becomes a frame as large as its own view, and that view may hold opened cards
// again. Around a frame the plane is stretched, in x and in y by itself: what is left of the card
// stays, what is right of it moves by as much as the card has grown, and what is level with it is
// spread. Neither stretching changes an order or brings two things closer, so nothing overlaps
// that did not before. Nothing here draws or remembers; all of it follows from what is open.

const TITLE = 30, MARGIN = 20; // of a frame: its title bar, and the room around its view
const CAPTION = 14; // of a card for what comes from outside; not shown where the wire can be seen
const CONTROLS = 66; // the room in a title bar for what one can press
const REACH = 28; // from a card on, in which a wire bends to where it ends; there no other card is
// Where a curve is cut into pieces, each of which is stretched by itself: finely at its ends.
const CUTS = [0.02, 0.05, 0.1, 0.17, 0.25, 0.33, 0.42, 0.5, 0.58, 0.67, 0.75, 0.83, 0.9, 0.95, 0.98, 1];

// A stretching of one axis: each span [from, to, size] is at least of that size afterwards.
// Small spans grow first, and what they have grown counts for the larger ones around them: cards
// side by side each get their width, and share one height. Within a span the growth sets in
// smoothly, so that wires get no kinks.
function stretched(spans) {
  const ramps = [];
  const map = (x) => {
    let moved = x;
    for (const [from, to, more] of ramps) {
      moved += more * eased((x - from) / (to - from));
    }
    return moved;
  };
  for (const [from, to, size] of [...spans].sort((a, b) => a[1] - a[0] - (b[1] - b[0]))) {
    const lacking = size - (map(to) - map(from));
    if (lacking > 0) ramps.push([from, to, lacking]);
  }
  return map;
}

// From 0 to 1, level at both.
function eased(t) {
  t = Math.min(1, Math.max(0, t));
  return t * t * (3 - 2 * t);
}

// A scope as it is seen: its size, its frames by the place of their card, and how its plane is
// stretched.
function unfolded(scopes, s, isOpen) {
  const view = scopes[s], frames = new Map(), across = [], down = [];
  view.cards.forEach((card, i) => {
    if (card.k !== "scope" || !isOpen(card.s)) return;
    const inside = unfolded(scopes, card.s, isOpen);
    const w = Math.max(inside.w, (card.cell || 0) + CONTROLS) + 2 * MARGIN, h = inside.h + TITLE + 2 * MARGIN;
    frames.set(i, { w, h, inside });
    across.push([card.x - card.w / 2, card.x + card.w / 2, w]);
    down.push([card.y - card.h / 2, card.y + card.h / 2, h]);
  });
  const mapX = stretched(across), mapY = stretched(down);
  return { s, w: mapX(view.w), h: mapY(view.h), frames, mapX, mapY };
}

// The picture of a scope: cards and wires with their places in it, level by level.
// A card's `of` is the scope in whose view it stands, its `id` is its own whatever else is open; a
// card of kind "frame" is an opened scope.
// A level is one view: its cards and wires are those from `cards[0]` to `cards[1]`, and so on.
function composed(scopes, s, isOpen) {
  const whole = unfolded(scopes, s, isOpen);
  const found = { w: whole.w, h: whole.h, cards: [], wires: [], levels: [] };
  spread(scopes, whole, 0, 0, found);
  return found;
}

function spread(scopes, part, left, top, found, around = null) {
  const view = scopes[part.s], first = found.cards.length, wires = found.wires.length;
  const x = (of) => left + part.mapX(of), y = (of) => top + part.mapY(of);
  view.cards.forEach((card, i) => {
    const frame = part.frames.get(i), now = { ...card, of: part.s, id: `${part.s}.${i}`, x: x(card.x), y: y(card.y) };
    if (frame) {
      const middle = (map, center, size) => (map(center - size / 2) + map(center + size / 2)) / 2;
      Object.assign(now, { k: "frame", w: frame.w, h: frame.h, x: middle(x, card.x, card.w), y: middle(y, card.y, card.h) });
    }
    if (around && card.k === "stub") Object.assign(now, { h: card.h - CAPTION, cap: "" });
    found.cards.push(now);
  });
  const insides = new Map(); // by the place of a card: what is in its frame, from where on
  for (const [i, { w, h, inside }] of part.frames) {
    const frame = found.cards[first + i];
    const start = frame.x - inside.w / 2, under = frame.y - h / 2 + TITLE + MARGIN;
    insides.set(i, { inside, start, under, doors: doorsOf(scopes[inside.s], inside, start, under) });
  }
  const moved = part.frames.size || left || top;
  for (const wire of view.wires) {
    let points = pointsOf(wire.d);
    if (moved) {
      const end = (i, at, side) => ({ card: view.cards[i], at, now: found.cards[first + i],
        doors: wire.v.map((v) => insides.get(i)?.doors.get(`${side}${v}`)).filter(Boolean) });
      points = led(points, end(wire.a, points[0], "out"), end(wire.b, points.at(-1), "in"), { x, y, stretches: part.frames.size, far: wire.far });
    }
    found.wires.push({ ...wire, a: first + wire.a, b: first + wire.b, points, d: moved ? pathOf(points) : wire.d });
  }
  if (around) continued(around, first, found);
  const twins = (view.frames || []).map(([l, t, w, h]) => [x(l), y(t), x(l + w) - x(l), y(t + h) - y(t)]);
  const level = { s: part.s, twins, cards: [first, first + view.cards.length], wires: [wires, found.wires.length] };
  found.levels.push(level);
  for (const [i, { inside, start, under, doors }] of insides) {
    spread(scopes, inside, start, under, found, { frame: first + i, outer: level.wires, doors });
  }
}

// Where wires from outside meet the cards that stand for what they carry: opposite to where these
// cards' own wires are. By side and variable: a point, and the direction that leads away from it.
function doorsOf(view, part, left, top) {
  const doors = new Map(), own = new Map();
  for (const wire of view.wires) {
    for (const i of [wire.a, wire.b]) if (view.cards[i].k === "stub") own.set(i, wire);
  }
  view.cards.forEach((card, i) => {
    if (card.k !== "stub") return;
    const points = own.has(i) ? pointsOf(own.get(i).d) : [[card.x, card.y + (card.side === "in" ? 1 : -1)]];
    const [dx, dy] = sideOf(card, card.side === "in" ? points[0] : points.at(-1)).map((d) => -d);
    const x = left + part.mapX(card.x) + (dx * card.w) / 2, y = top + part.mapY(card.y) + (dy * (card.h - CAPTION)) / 2;
    doors.set(`${card.side}${card.v}`, { i, x, y, dx, dy });
  });
  return doors;
}

// On which side of a card a point is, as the direction that leads out of the card there.
function sideOf(card, [x, y]) {
  const across = (x - card.x) / card.w, down = (y - card.y) / card.h;
  return Math.abs(across) > Math.abs(down) ? [Math.sign(across), 0] : [0, Math.sign(down) || 1];
}

// Wires that end at a frame go on, inside of it, to the cards that stand for what they carry.
function continued({ frame, outer, doors }, first, found) {
  for (let i = outer[0]; i < outer[1]; i++) {
    const wire = found.wires[i], into = wire.b === frame;
    for (const v of into || wire.a === frame ? wire.v : []) {
      const door = doors.get(`${into ? "in" : "out"}${v}`);
      if (!door) continue;
      const way = passage(found.cards[frame], into ? wire.points.at(-1) : wire.points[0], door);
      const points = into ? way : way.reverse(), stub = first + door.i;
      const ends = into ? { a: wire.a, b: stub } : { a: stub, b: wire.b };
      found.wires.push({ ...ends, v: [v], points, d: pathOf(points), inner: 1, ...(wire.far ? { far: 1 } : {}) });
    }
  }
}

// From a point on the border of a frame to a door inside; under the title bar, not across it.
function passage(frame, [x, y], door) {
  const [dx, dy] = sideOf(frame, [x, y]), far = Math.hypot(door.x - x, door.y - y) / 2;
  if (dy < 0) y += TITLE;
  const bend = Math.max(10, Math.min(70, far)), short = Math.min(bend, MARGIN - 6);
  const aside = Math.abs(dx) !== Math.abs(door.dx) ? short : bend;
  return [[x, y], [x - dx * bend, y - dy * bend], [door.x + door.dx * aside, door.y + door.dy * aside], [door.x, door.y]];
}

// The way of a wire after stretching, from the card at its start to the card at its end.
function led(points, start, end, { x, y, stretches, far }) {
  const from = landing(start), to = landing(end);
  if (far) return bent(from.spot, to.spot, x(points[Math.floor(points.length / 2)][0]));
  const fine = stretches ? divided(points) : points, last = fine.length - 1, length = stretches ? 3 * CUTS.length : 3;
  const way = fine.map(([px, py]) => [x(px), y(py)]);
  const [first, final] = [way[0], way[last]];
  const near = (p, end, point, steps) => (steps < length ? eased(1 - Math.abs(p[end.across] - point[end.across]) / REACH) : 0);
  return way.map((p, i) => {
    const a = i ? near(p, from, first, i) : 1, b = i < last ? near(p, to, final, last - i) : 1;
    return [0, 1].map((k) => p[k] + a * (from.spot[k] - first[k]) + b * (to.spot[k] - final[k]));
  });
}

// Where a wire ends at a card: where it did before; at a frame, before the door that it leads to.
// `across` is the axis that leads away from that side: 0 is x, 1 is y.
function landing({ card, at: [x, y], now, doors }) {
  // from the middle of a card: as far outside of it as before
  const along = (off, half, then) => (Math.abs(off) <= half ? (off * then) / half : off + Math.sign(off) * (then - half));
  const spot = [now.x + along(x - card.x, card.w / 2, now.w / 2), now.y + along(y - card.y, card.h / 2, now.h / 2)];
  const [dx] = sideOf(card, [x, y]), across = dx ? 0 : 1, k = 1 - across;
  if (!doors.length) return { spot, across };
  const wanted = doors.map((door) => (k ? door.y + 18 * door.dy : door.x + 18 * door.dx));
  const middle = wanted.reduce((a, b) => a + b, 0) / wanted.length;
  const [low, high] = k ? [now.y - now.h / 2 + TITLE, now.y + now.h / 2] : [now.x - now.w / 2, now.x + now.w / 2];
  spot[k] = Math.min(high - 12, Math.max(low + 12, middle));
  return { spot, across };
}

// From a right side to a left side, level at both, down along x.
function bent([x0, y0], [x1, y1], x) {
  const bend = Math.min(24, Math.abs(y1 - y0) / 2), down = y1 > y0 ? bend : -bend, turn = Math.min(24, Math.max(x - x0, 4));
  return [
    [x0, y0], [x - turn, y0], [x - turn, y0], [x - turn, y0],
    [x, y0], [x, y0], [x, y0 + down],
    [x, y0 + down], [x, y1 - down], [x, y1 - down],
    [x, y1], [x, y1], [x + turn, y1],
    [x + turn, y1], [x1, y1], [x1, y1],
  ];
}

// The curves of a path in pieces: a stretched piece lies where the stretched curve would.
function divided(points) {
  const fine = [points[0]];
  const between = (p, q, t) => [p[0] + (q[0] - p[0]) * t, p[1] + (q[1] - p[1]) * t];
  for (let i = 0; i + 3 < points.length; i += 3) {
    let [a, b, c, d] = points.slice(i, i + 4), done = 0;
    for (const cut of CUTS) {
      const t = (cut - done) / (1 - done), ab = between(a, b, t), bc = between(b, c, t), cd = between(c, d, t);
      const abc = between(ab, bc, t), bcd = between(bc, cd, t), on = between(abc, bcd, t);
      fine.push(ab, abc, on);
      [a, b, c, done] = [on, bcd, cd, cut];
    }
  }
  return fine;
}

function pointsOf(path) {
  const numbers = path.match(/-?[\d.]+/g).map(Number), points = [];
  for (let i = 0; i < numbers.length; i += 2) points.push([numbers[i], numbers[i + 1]]);
  return points;
}

function pathOf(points) {
  const at = ([x, y]) => `${Math.round(10 * x) / 10},${Math.round(10 * y) / 10}`;
  let path = `M${at(points[0])}`;
  for (let i = 1; i < points.length; i += 3) path += `C${points.slice(i, i + 3).map(at).join(" ")}`;
  return path;
}
