// Colours by bytes kept, by operations, by the size of the gradient.

const MODES = { plain: "Plain", memory: "Bytes kept", flops: "Flops", gradient: "Gradient" };

// How the kinds of findings about gradients are shown.
const SORT = { nan: "broken", infinite: "broken", dead: "dead", "partly dead": "dead", underflow: "weak", vanishing: "weak", exploding: "strong" };
const KIND = new Map(DATA.signals.map(([kind, v]) => [v, kind]));
const BADGE = { nan: "NaN", infinite: "∞" };

// The gravest finding about what a card shows; of a scope, about what is made or first used in it.
function kindOf(card) {
  const scope = DATA.scopes[card.s];
  if (!scope) {
    const z = DATA.variables[card.v]?.z;
    return KIND.get(card.v) || (z === "nan" ? "nan" : z === "inf" ? "infinite" : undefined);
  }
  const inside = new Set(scope.e);
  const found = DATA.signals.find(([, v]) => inside.has(MAKER[v] < 0 ? USERS[v][0] : MAKER[v]));
  return found?.[0];
}

const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < 4) (count /= 1024), unit++;
  return `${unit ? count.toFixed(1) : count} ${units[unit]}`;
}

function amount(count) {
  for (const [size, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (count >= size) return `${(count / size).toFixed(1)}${letter}`;
  }
  return String(count);
}

function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const shown = size >= 0.01 && size < 1e4 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
  return shown.replace("e+", "e").replace(/-/g, "−");
}

// Bytes kept of what an equation makes; operations; sizes of gradients.
const keptOf = (e) => sum(DATA.equations[e].y.map((v) => DATA.variables[v].b || 0));
const flopsOf = (e) => DATA.equations[e].c || 0;
const sizesOf = (e) => DATA.equations[e].y.map((v) => DATA.variables[v].z).filter((z) => z !== undefined);

for (const scope of DATA.scopes) {
  scope.kept = sum(scope.e.map(keptOf));
  scope.flops = sum(scope.e.map(flopsOf));
  scope.size = worst(scope.e.flatMap(sizesOf));
}

// The size that a set of gradients is shown with: what is not finite first, then the greatest.
function worst(sizes) {
  for (const word of ["nan", "inf"]) if (sizes.includes(word)) return word;
  const found = sizes.filter((z) => z !== "zero");
  return found.length ? Math.max(...found) : sizes.length ? "zero" : undefined;
}

const SIZES = DATA.variables.map((v) => v.z).filter((z) => typeof z === "number");
const LEAST = Math.min(...SIZES), MOST = Math.max(...SIZES);

function measured(card, mode) {
  const variable = DATA.variables[card.v], scope = DATA.scopes[card.s];
  if (mode === "gradient") {
    if (scope) return scope.size;
    return card.v === -1 && card.e !== undefined ? worst(sizesOf(card.e)) : variable?.z;
  }
  if (mode === "memory") return scope ? scope.kept : card.e !== undefined ? keptOf(card.e) : variable?.b || 0;
  return scope ? scope.flops : card.e !== undefined ? flopsOf(card.e) : 0;
}

const TINT = { memory: "var(--memory)", flops: "var(--flops)", gradient: "var(--size)" };

let tinted = false; // whether cards have other colours than they were drawn with

function paint() {
  const mode = state.colour, { cards } = shown;
  const found = cards.map((card) => (mode === "plain" || card.k === "frame" ? 0 : measured(card, mode)));
  const most = Math.max(0, ...found.filter((x) => typeof x === "number"));
  if (tinted || mode !== "plain") cards.forEach((card, index) => {
    if (card.k === "frame") return; // what is in it has the colours
    const element = cardElements[index], size = found[index];
    element.classList.remove("tinted", "zero", "nothing", "broken");
    element.querySelector(".badge")?.remove();
    if (mode === "plain") return;
    const kind = mode === "gradient" ? kindOf(card) : undefined;
    if (kind) {
      const left = card.x - card.w / 2 + 2;
      const badge = svg("text", { class: `badge ${SORT[kind]}`, x: left, y: card.y - card.h / 2 - 4 }, BADGE[kind] || kind);
      element.append(badge);
    }
    let part = 0;
    if (mode === "gradient") {
      if (size === undefined) return element.classList.add("nothing");
      if (size === "zero") return element.classList.add("zero");
      if (size === "nan" || size === "inf") {
        element.classList.add("broken");
        return;
      }
      part = MOST > LEAST ? 0.06 + (0.94 * Math.log(size / LEAST)) / Math.log(MOST / LEAST) : 0.5;
    } else part = most && size ? 0.04 + (0.96 * size) / most : 0;
    element.classList.add("tinted");
    element.style.setProperty("--tint", TINT[mode]);
    element.style.setProperty("--part", part.toFixed(3));
  });
  tinted = mode !== "plain";
  legend(mode, most, found);
}

function legend(mode, most, found) {
  const box = $("legend");
  box.style.setProperty("--tint", TINT[mode] || "transparent");
  const ramp = (title, low, high) =>
    `<b>${title}</b><div><div class="ramp"></div><div class="ends"><span>${low}</span><span>${high}</span></div></div>`;
  const key = (style, label) => `<span><i ${style}></i>${escaped(label)}</span>`;
  if (mode === "memory") box.innerHTML = ramp("Kept for the reverse sweep", "0 B", bytes(most));
  else if (mode === "flops") box.innerHTML = ramp("Floating-point operations", "0", amount(most));
  else if (mode === "gradient") {
    const middle = Math.sqrt(LEAST * MOST);
    const ends = SIZES.length ? [number(LEAST), number(middle), number(MOST)] : ["", "", ""];
    box.innerHTML = `<b>Gradient, root mean square, log scale</b><div><div class="ramp"></div>
      <div class="ends">${ends.map((e) => `<span>${e}</span>`).join("")}</div></div><div class="keys">
      ${key('class="zero"', "zero")}${key('style="background:color-mix(in oklab, var(--background), var(--bad) 45%)"', "NaN or ∞")}
      ${key('style="opacity:.45"', "pale: no gradient")}
      ${[...new Set(DATA.signals.map(([kind]) => kind))].map((kind) => `<span class="sort ${SORT[kind]}">${BADGE[kind] || kind}</span>`).join("")}</div>`;
  } else {
    box.innerHTML = `<div class="keys">
      ${key('style="background:var(--variable)"', "argument")}${key('style="background:var(--operator)"', "operation")}
      ${key('style="background:var(--closed)"', "scope, opens")}${key('style="border-style:dashed"', "from or to outside")}
      <span style="color:var(--value)">value</span><span style="color:var(--gradient)">gradient</span></div>`;
  }
}
