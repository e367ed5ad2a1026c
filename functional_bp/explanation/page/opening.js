// What is open: the scope that is shown, and the scopes inside of it that are open in place.

const state = { scope: 0, open: new Set(), colour: "plain", selected: null, preview: null };
const MOST_OPEN = 400; // cards of a picture in which everything is opened at once
const MOST_ON_THE_WAY = 200; // cards of a picture that still grows to show what is asked for
const READABLE = 0.55; // the scale from which on letters are read

const view = () => DATA.scopes[state.scope];
const inside = new Map(DATA.scopes.map((_, s) => [s, []]));
DATA.scopes.forEach((scope, s) => scope.u >= 0 && inside.get(scope.u).push(s));

function ancestors(s) {
  const chain = [];
  for (; s >= 0; s = DATA.scopes[s].u) chain.unshift(s);
  return chain;
}

const below = (s) => inside.get(s).flatMap((child) => [child, ...below(child)]);
const opened = () => shown.cards.filter((card) => card.k === "frame").map((card) => card.s);
const cardOf = (s) => shown.cards.findIndex((card) => card.s === s);

// Draws what is open now, and tells of what is selected or of a scope.
function redraw(about = null) {
  drawPicture(composed(DATA.scopes, state.scope, (s) => state.open.has(s)));
  tinted = false;
  refresh(about);
}

// One scope alone

function open(s, { select = null, from = null, write = true, fade = "in" } = {}) {
  const deeper = from !== null;
  const show = () => {
    state.scope = s;
    state.selected = select;
    ancestors(s).forEach((a) => listed.add(a));
    redraw();
    const to = fit();
    if (deeper || from === null) place({ k: to.k * (deeper ? 0.86 : 1.1), x: to.x, y: to.y });
    fly(to, () => select && revealSelected(), fade);
    if (write) writeHash();
  };
  if (!deeper || still.matches) return show();
  const { width, height } = room;
  const k = Math.min(width / from.w, height / from.h, at.k * 4);
  fly({ k, x: width / 2 - k * from.x, y: height / 2 - k * from.y }, show, "out");
}

function up() {
  if (state.scope === 0) return;
  const child = state.scope;
  open(DATA.scopes[child].u);
  const index = cardOf(child);
  if (index >= 0) cardElements[index].focus({ preventScroll: true });
}

// In place

const places = new Map(); // by scope: where the picture was before it was opened, and afterwards

function toggle(s) {
  const before = at, former = shown, card = former.cards[cardOf(s)];
  const whole = inSight(former), focus = document.activeElement?.closest?.(".card");
  state.open.has(s) ? state.open.delete(s) : state.open.add(s);
  redraw(s);
  const index = cardOf(s), now = shown.cards[index];
  if (focus) cardElements[index].focus({ preventScroll: true });
  moveFrom(former);
  const to = state.open.has(s) ? roomFor(card, now, whole) : backTo(s, card, now);
  if (state.open.has(s)) places.set(s, [before, to]);
  fly(to);
  writeHash();
}

const inSight = ({ w, h }) => {
  const { width, height } = room;
  return at.x >= -1 && at.y >= -1 && at.x + at.k * w <= width + 1 && at.y + at.k * h <= height + 1;
};

// All of the picture, if it was seen before and can still be read; or else the frame.
function roomFor(card, frame, whole) {
  const all = fit(), { width, height } = room;
  if (whole && all.k >= READABLE && all.k * shown.w <= width && all.k * shown.h <= height) return all;
  const scale = Math.min((width - 80) / frame.w, (height - 80) / frame.h);
  const k = Math.min(at.k, Math.max(scale, READABLE));
  const x = at.x + at.k * card.x - k * frame.x;
  const y = at.y + at.k * (card.y - card.h / 2) - k * (frame.y - frame.h / 2);
  return sighted(frame, { k, x, y }, 30);
}

// To where the picture was, unless it was moved since; or else the card comes where the title was.
function backTo(s, frame, card) {
  const [before, after] = places.get(s) || [];
  if (after === at) return before;
  const title = spot(frame);
  return sighted(card, { k: at.k, x: at.x + at.k * (title.x - card.x), y: at.y + at.k * (title.y - card.y) });
}

// Opens the scopes that hold a scope, and it, if the picture then is not too large; the card of
// what is asked for there is then brought into sight by whoever asks.
function opensOnTheWay(s) {
  for (const base of state.scope ? [state.scope, 0] : [0]) {
    const chain = ancestors(s), start = chain.indexOf(base);
    if (start < 0) continue;
    const former = shown, moved = base !== state.scope;
    const kept = moved ? [] : opened();
    const size = [...new Set([base, ...kept, ...chain.slice(start + 1)])].reduce((n, a) => n + DATA.scopes[a].cards.length, 0);
    if (size > MOST_ON_THE_WAY) continue;
    if (moved) state.open.clear();
    chain.slice(start + 1).forEach((a) => state.open.add(a));
    state.scope = base;
    redraw();
    moved ? place(fit()) : moveFrom(former);
    return true;
  }
  return false;
}

// Everything at once

const size = (s) => sum([s, ...below(s)].map((a) => DATA.scopes[a].cards.length));

function openAll() {
  if (size(state.scope) > MOST_OPEN) return;
  below(state.scope).forEach((s) => state.open.add(s));
  changeAll();
}

function closeAll() {
  below(state.scope).forEach((s) => state.open.delete(s));
  changeAll();
}

function changeAll() {
  const former = shown;
  redraw();
  moveFrom(former);
  fly(fit());
  writeHash();
}

function controls() {
  const here = below(state.scope), some = opened().length;
  $("open-all").hidden = some === here.length || size(state.scope) > MOST_OPEN;
  $("close-all").hidden = !some;
}
