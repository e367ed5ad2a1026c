// Scopes opened in place: how a picture makes room for what is inside a card.
//
// Every scope has a view that was laid out beforehand, in which the scopes inside are closed cards.
// An opened card becomes a frame as large as its own view, and that view may hold opened cards
// again. Around a frame the plane is stretched, in x and in y by itself: what is left of the card
// stays, what is right of it moves by as much as the card has grown, and what is level with it is
// spread. Neither stretching changes an order or brings two things closer, so nothing overlaps
// that did not before. Nothing here draws or remembers; all of it follows from what is open.

const TITLE = 30, MARGIN = 16; // of a frame: its title bar, and the room around its view
const CONTROLS = 66; // the room in a title bar for what one can press
const PIECES = 6; // of a curve, each of which is stretched by itself

// A stretching of one axis: each span [from, to, size] is at least of that size afterwards.
// Small spans grow first, and what they have grown counts for the larger ones around them: cards
// side by side each get their width, and share one height. Within a span the growth sets in
// smoothly, so that wires get no kinks.
function stretched(spans) {
  const ramps = [];
  const map = (x) => {
    let moved = x;
    for (const [from, to, more] of ramps) {
      const t = Math.min(1, Math.max(0, (x - from) / (to - from)));
      moved += more * t * t * (3 - 2 * t);
    }
    return moved;
  };
  for (const [from, to, size] of [...spans].sort((a, b) => a[1] - a[0] - (b[1] - b[0]))) {
    const lacking = size - (map(to) - map(from));
    if (lacking > 0) ramps.push([from, to, lacking]);
  }
  return map;
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
    const frame = part.frames.get(i), place = { of: part.s, id: `${part.s}.${i}`, x: x(card.x), y: y(card.y) };
    found.cards.push(frame ? { ...card, ...place, k: "frame", w: frame.w, h: frame.h } : { ...card, ...place });
  });
  const moved = part.frames.size || left || top;
  for (const wire of view.wires) {
    const ends = [wire.a, wire.b].map((i) => [view.cards[i], found.cards[first + i]]);
    const points = moved ? led(pointsOf(wire.d), ends, x, y) : pointsOf(wire.d);
    found.wires.push({ ...wire, a: first + wire.a, b: first + wire.b, points, d: moved ? pathOf(points) : wire.d });
  }
  if (around) continued(around, first, found);
  const twins = (view.frames || []).map(([l, t, w, h]) => [x(l), y(t), x(l + w) - x(l), y(t + h) - y(t)]);
  const level = { s: part.s, twins, cards: [first, first + view.cards.length], wires: [wires, found.wires.length] };
  found.levels.push(level);
  for (const [i, { w, inside }] of part.frames) {
    const frame = found.cards[first + i], outer = level.wires;
    const start = frame.x - w / 2 + (w - inside.w) / 2, under = frame.y - frame.h / 2 + TITLE + MARGIN;
    spread(scopes, inside, start, under, found, { frame: first + i, outer });
  }
}

// Wires that end at a frame go on, inside of it, to the cards that stand for what they carry.
function continued({ frame, outer }, first, found) {
  const stubs = new Map();
  found.cards.slice(first).forEach((card, i) => card.k === "stub" && stubs.set(`${card.side}${card.v}`, first + i));
  for (let i = outer[0]; i < outer[1]; i++) {
    const wire = found.wires[i], side = wire.b === frame ? "in" : wire.a === frame ? "out" : "";
    for (const v of side ? wire.v : []) {
      const stub = stubs.get(`${side}${v}`);
      if (stub === undefined) continue;
      const points = passage(found.cards[frame], found.cards[stub], side === "in" ? wire.points.at(-1) : wire.points[0]);
      const ends = side === "in" ? { a: wire.a, b: stub } : { a: stub, b: wire.b };
      found.wires.push({ ...ends, v: [v], points, d: pathOf(points), inner: 1, ...(wire.far ? { far: 1 } : {}) });
    }
  }
}

// From where a wire meets a frame to a stub inside, or back.
function passage(frame, stub, [x, y]) {
  const above = y < stub.y, edge = above ? stub.y - stub.h / 2 : stub.y + stub.h / 2;
  const bend = Math.max(12, Math.min(60, Math.abs(edge - y) * 0.6)) * (above ? 1 : -1);
  return [[x, y], [x, y + bend], [stub.x, edge - bend], [stub.x, edge]];
}

// The way of a wire after stretching. Its ends stay where they are at their cards, in proportion
// where a card has another size now.
function led(points, ends, x, y) {
  const fine = divided(points), last = fine.length - 1;
  const way = fine.map(([px, py]) => [x(px), y(py)]);
  // from the middle of a card: as far outside of it as before
  const along = (off, half, now) => (Math.abs(off) <= half ? (off * now) / half : off + Math.sign(off) * (now - half));
  [0, last].forEach((i, end) => {
    const [card, now] = ends[end], [px, py] = fine[i], handle = i ? last - 1 : 1;
    const to = [now.x + along(px - card.x, card.w / 2, now.w / 2), now.y + along(py - card.y, card.h / 2, now.h / 2)];
    way[handle] = [0, 1].map((k) => way[handle][k] + to[k] - way[i][k]);
    way[i] = to;
  });
  return way;
}

// The curves of a path in pieces: a stretched piece lies where the stretched curve would.
function divided(points) {
  const fine = [points[0]];
  const between = (p, q, t) => [p[0] + (q[0] - p[0]) * t, p[1] + (q[1] - p[1]) * t];
  for (let i = 0; i + 3 < points.length; i += 3) {
    let [a, b, c, d] = points.slice(i, i + 4);
    for (let left = PIECES; left > 1; left--) {
      const t = 1 / left, ab = between(a, b, t), bc = between(b, c, t), cd = between(c, d, t);
      const abc = between(ab, bc, t), bcd = between(bc, cd, t), on = between(abc, bcd, t);
      fine.push(ab, abc, on);
      [a, b, c] = [on, bcd, cd];
    }
    fine.push(b, c, d);
  }
  return fine;
}

function pointsOf(path) {
  const numbers = path.match(/-?[\d.]+/g).map(Number), points = [];
  for (let i = 0; i < numbers.length; i += 2) points.push([numbers[i], numbers[i + 1]]);
  return points;
}

function pathOf(points) {
  const at = ([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`;
  let path = `M${at(points[0])}`;
  for (let i = 1; i < points.length; i += 3) path += `C${points.slice(i, i + 3).map(at).join(" ")}`;
  return path;
}
