// What is selected, where one can go from here, pointer and keys.

const byPath = new Map(DATA.scopes.map((scope, s) => [scope.p, s]));
const listed = new Set([0]); // scopes whose inner scopes the list shows

const isCard = (key) => (card) =>
  key && ((key.v !== undefined && card.v === key.v && card.s === undefined) || (key.e !== undefined && card.e === key.e));

// Selecting

function refresh(about = null) {
  paint();
  crumbs();
  overview();
  controls();
  mark();
  showPanel(about !== null ? aboutScope(about) : aboutShown());
}

const aboutShown = () => (state.selected ? aboutSelected() : aboutScope(state.scope) + HELP);

function aboutSelected() {
  const card = shown.cards.find(isCard(state.selected));
  if (state.selected.e !== undefined && card?.e !== state.selected.e) return aboutEquation(state.selected.e);
  return card ? aboutCard(card) : aboutVariable(state.selected.v);
}

// Marks what is selected, and the wires that carry it, through the frames of opened scopes.
function mark() {
  const isChosen = isCard(state.shown || state.selected), chosen = new Set(), carriers = new Set(), made = new Set();
  shown.cards.forEach((card, i) => {
    const is = Boolean(isChosen(card));
    cardElements[i].classList.toggle("chosen", is);
    if (!is) return;
    chosen.add(i);
    (card.e !== undefined ? DATA.equations[card.e].y : [card.v]).forEach((v) => made.add(v));
  });
  if (chosen.size) shown.cards.forEach((card, i) => card.k === "stub" && made.has(card.v) && carriers.add(i));
  shown.wires.forEach((wire, i) => {
    const along = (carriers.has(wire.a) || carriers.has(wire.b)) && wire.v.some((v) => made.has(v));
    wireElements[i].classList.toggle("lit", along || chosen.has(wire.a) || chosen.has(wire.b));
  });
}

function select(key, instead = null) {
  state.selected = key;
  state.shown = instead;
  mark();
  showPanel(aboutShown());
  writeHash();
}

function revealSelected(opening = false) {
  const found = shown.cards.filter(isCard(state.shown || state.selected));
  const card = found.find(({ k }) => k !== "stub") || found[0];
  if (card) opening ? center(card) : reveal(card);
}

// Goes to an equation ("e12"), a variable ("v3") or a scope ("s4"): in this picture, in which the
// scopes around it then open, or in a picture of its own scope.
function go(target) {
  const kind = target[0], index = Number(target.slice(1));
  if (kind === "s") return open(index);
  let key = { v: index }, home = -1, instead = null;
  if (kind === "v" && MAKER[index] < 0) {
    home = DATA.scopes.findIndex((s) => s.cards.some((c) => c.v === index && c.k === "leaf"));
  } else {
    const e = kind === "v" ? MAKER[index] : index;
    const [place, drawn] = DATA.equations[e].d || [state.scope, e];
    [key, home] = [{ e }, place];
    if (drawn !== e) instead = { e: drawn };
  }
  const opening = home >= 0 && !shown.levels.some((level) => level.s === home);
  if (opening && !opensOnTheWay(home)) {
    state.shown = instead;
    return open(home, { select: key });
  }
  select(key, instead);
  revealSelected(opening);
}

// What a click or a key does to a card.
function act(index, { jump = false, alone = false } = {}) {
  const card = shown.cards[index];
  if (card.s !== undefined) return alone ? open(card.s, { from: card }) : toggle(card.s);
  if (card.k === "stub" && jump) return jumpFrom(card);
  const key = card.e !== undefined ? { e: card.e } : { v: card.v };
  const same = state.selected && isCard(state.selected)(card);
  select(same ? null : key);
}

function jumpFrom(stub) {
  if (stub.side === "in") return go(`v${stub.v}`);
  if (stub.go < 0) return;
  const index = cardOf(stub.go);
  if (index < 0) return open(stub.go);
  cardElements[index].focus({ preventScroll: true });
  reveal(shown.cards[index]);
}

// Breadcrumbs and the list of scopes

function crumbs() {
  const chain = ancestors(state.scope);
  $("crumbs").innerHTML = chain.map((s, i) => {
    const here = i === chain.length - 1 ? ' aria-current="page"' : "";
    return `<button type="button" data-go="s${s}"${here}>${escaped(DATA.scopes[s].n || DATA.title)}</button>`;
  }).join("<i>/</i>");
}

let current = null; // the scope that the list showed last as the one gone into

function overview() {
  const measure = { memory: (s) => s.kept, flops: (s) => s.flops }[state.colour];
  const rows = [], levels = new Set(shown.levels.map((level) => level.s));
  const add = (s, depth) => {
    const scope = DATA.scopes[s], children = inside.get(s), isOpen = listed.has(s);
    const twist = children.length ? `<span class="twist" data-twist="${s}">${isOpen ? "▼" : "▶"}</span>` : '<span class="twist"></span>';
    const count = state.colour === "memory" ? bytes(scope.kept) : state.colour === "flops" ? amount(scope.flops) : scope.e.length;
    const part = measure && measure(DATA.scopes[0]) ? measure(scope) / measure(DATA.scopes[0]) : 0;
    const bar = part ? `<span class="bar" style="--tint:${TINT[state.colour]};width:calc((100% - 16px) * ${part.toFixed(4)})"></span>` : "";
    const seen = levels.has(s) && s !== state.scope ? " seen" : "";
    rows.push(`<button type="button" class="row${seen}" data-go="s${s}" aria-current="${s === state.scope}" style="padding-left:${8 + 13 * depth}px">
      ${twist}<span class="label">${escaped(scope.n || DATA.title)}</span><span class="count">${count}</span>${bar}</button>`);
    if (isOpen) children.forEach((child) => add(child, depth + 1));
  };
  add(0, 0);
  $("overview").innerHTML = rows.join("");
  if (state.scope !== current) $("overview").querySelector('[aria-current="true"]')?.scrollIntoView({ block: "nearest" });
  current = state.scope;
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
    listed.has(s) ? listed.delete(s) : listed.add(s);
    return overview();
  }
  const target = event.target.closest("[data-go]");
  if (target) {
    go(target.dataset.go);
    return closeSearch();
  }
  if (!picture.contains(event.target) || picture.dataset.dragged) return;
  const card = event.target.closest(".card"), control = event.target.closest("[data-do]");
  if (event.detail > 1) {
    // the second click of two: the scope that the first one opened is shown alone
    if (event.detail === 2 && touched !== null) alone(touched);
    touched = null;
    return;
  }
  touched = card ? shown.cards[card.dataset.card].s ?? null : null;
  if (control?.dataset.do === "close") touched = null;
  if (card) act(Number(card.dataset.card), { alone: control?.dataset.do === "alone" });
  else if (state.selected) select(null);
});

let touched = null; // the scope whose card or title was clicked last

function alone(s) {
  const card = shown.cards[cardOf(s)];
  if (!card) return;
  state.open.delete(s);
  open(s, { from: card });
}

picture.addEventListener("dblclick", (event) => {
  const card = event.target.closest(".card");
  if (card && shown.cards[card.dataset.card]?.k === "stub") act(Number(card.dataset.card), { jump: true });
});
picture.addEventListener("pointerover", (event) => {
  if (fingers.size) return;
  const card = event.target.closest(".card"), wire = event.target.closest(".reach");
  if (card) showPanel(aboutCard(shown.cards[card.dataset.card]));
  else if (wire) showPanel(aboutWire(shown.wires[wire.dataset.wire]));
  else if (state.preview) showPanel(aboutShown());
  state.preview = card || wire;
});

function nearest(index, dx, dy) {
  const spots = shown.cards.map(spot), here = spots[index];
  let best = -1, least = Infinity;
  spots.forEach((there, i) => {
    const x = there.x - here.x, y = there.y - here.y, along = x * dx + y * dy, beside = Math.abs(x * dy) + Math.abs(y * dx);
    if (i !== index && along > 4 && along + 2 * beside < least) [best, least] = [i, along + 2 * beside];
  });
  return best;
}

// Lets go of what is selected; or else closes the scope around a card, or goes one scope up.
function back(card) {
  if (state.selected) return select(null);
  const around = card?.k === "frame" ? card.s : card?.of;
  around === undefined || around === state.scope ? up() : toggle(around);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const card = event.target.closest?.(".card"), index = card ? Number(card.dataset.card) : -1;
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key === "/") $("search").focus();
  else if (event.key === "Escape") back(shown.cards[index]);
  else if (event.key === "Backspace") up();
  else if (event.key === "e") openAll();
  else if (event.key === "c") closeAll();
  else if (event.key === "+" || event.key === "=") zoomBy(1.25);
  else if (event.key === "-") zoomBy(0.8);
  else if (event.key === "0") fly(fit());
  else if (index >= 0 && (event.key === "Enter" || event.key === " ")) act(index, { jump: event.key === "Enter", alone: event.shiftKey });
  else if (arrows[event.key] && (card || document.activeElement === document.body)) {
    const next = card ? nearest(index, ...arrows[event.key]) : 0;
    if (next >= 0) cardElements[next].focus({ preventScroll: true }), reveal(shown.cards[next]);
  } else return;
  event.preventDefault();
});
world.addEventListener("focusin", (event) => {
  const card = event.target.closest(".card");
  if (card?.matches(":focus-visible")) showPanel(aboutCard(shown.cards[card.dataset.card]));
});
$("zoom").addEventListener("click", (event) => {
  const action = event.target.dataset.do;
  if (action === "fit") fly(fit());
  else if (action) zoomBy(action === "in" ? 1.25 : 0.8);
});

$("open-all").addEventListener("click", openAll);
$("close-all").addEventListener("click", closeAll);

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

// The address: #in=encoder&open=encoder/block_2&colour=memory&select=h

function readHash() {
  const wish = new URLSearchParams(location.hash.slice(1));
  theme(wish.get("theme") || document.documentElement.dataset.theme || (darkness.matches ? "dark" : "light"));
  colourBy(wish.get("colour") || "plain");
  const name = wish.get("select");
  const v = name === null ? -1 : DATA.variables.findIndex((x) => x.n === name);
  const selected = v < 0 ? null : MAKER[v] >= 0 ? { e: MAKER[v] } : { v };
  const s = byPath.get(wish.get("in") || "") ?? 0, wanted = wish.getAll("open");
  state.open = new Set(wanted.includes("*") ? below(s) : wanted.flatMap((path) => ancestors(byPath.get(path) ?? -1)));
  const placed = wish.has("in") || wanted.length;
  open(s, { select: placed ? selected : null, write: false, fade: "none" });
  if (selected && !placed) go(`v${v}`);
}

let written = "";
function writeHash() {
  const parts = [];
  const path = (s) => encodeURI(DATA.scopes[s].p).replace(/[&#+]/g, encodeURIComponent);
  if (state.scope) parts.push(`in=${path(state.scope)}`);
  const all = opened(), around = new Set(all.map((s) => DATA.scopes[s].u));
  // a scope that is open stands for those around it
  if (all.length > 1 && all.length === below(state.scope).length) parts.push("open=*");
  else all.filter((s) => !around.has(s)).forEach((s) => parts.push(`open=${path(s)}`));
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
readHash();
