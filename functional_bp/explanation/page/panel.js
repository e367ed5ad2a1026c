// The facts at the right: of a value, an equation, a scope, a wire.

const link = (target, inside) => `<button type="button" class="link" data-go="${target}">${inside}</button>`;

// Names are SVG spans; in HTML their attributes are styles.
function mathematics(markup) {
  return markup.replace(/<tspan([^>]*)>(.*?)<\/tspan>/g, (_, attributes, inside) => {
    const has = (text) => attributes.includes(text);
    let piece = has('font-style="italic"') ? `<i>${inside}</i>` : inside;
    if (has('font-weight="bold"')) piece = `<b>${inside}</b>`;
    const shift = /dy="(-?[\d.]+)"/.exec(attributes);
    if (has("font-size=")) piece = shift && Number(shift[1]) < 0 ? `<sup>${piece}</sup>` : `<sub>${piece}</sub>`;
    return piece;
  });
}

const called = (variable) => (variable.m ? mathematics(variable.m) : escaped(variable.n));

function entries(facts) {
  if (!Array.isArray(facts[1])) return (facts[1] ? `<div class="quiet">${escaped(facts[1])}</div>` : "") + histogram(facts[2]);
  const [, cells, shape] = facts;
  if (shape.length === 1 && cells.length <= 4) return "";
  const width = shape.length ? shape[shape.length - 1] : 1;
  let rows = "";
  for (let i = 0; i < cells.length; i += width) {
    rows += `<tr>${cells.slice(i, i + width).map((c) => `<td>${escaped(c)}</td>`).join("")}</tr>`;
  }
  return `<div class="entries"><table>${rows}</table></div>`;
}

// How entries lie between the least and the greatest: a string with a digit for each bar.
function histogram(digits) {
  if (!digits) return "";
  const bars = [...digits].map((d, i) => (d > 0 ? `<rect x="${i * 8}" y="${27 - 3 * d}" width="7" height="${3 * d}"/>` : "")).join("");
  return `<svg class="histogram" preserveAspectRatio="none" viewBox="0 0 ${8 * digits.length - 1} 28" role="img" aria-label="histogram">${bars}<path d="M0,27.5h${8 * digits.length - 1}"/></svg>`;
}

function amounts(variable) {
  let text = "";
  if (variable.v) text += `<h3 class="value">Value</h3><div class="number">${escaped(variable.v[0])}</div><div class="value">${entries(variable.v)}</div>`;
  if (variable.g) text += `<h3 class="gradient">Gradient</h3><div class="number">${escaped(variable.g[0])}</div><div class="gradient">${entries(variable.g)}</div>`;
  else if (variable.v) text += `<h3 class="gradient">Gradient</h3><div class="quiet">none: no path leads from here to the output</div>`;
  return text + notable(DATA.variables.indexOf(variable));
}

const USERS = DATA.variables.map(() => []), MAKER = DATA.variables.map(() => -1);
DATA.equations.forEach((equation, e) => {
  equation.y.forEach((v) => (MAKER[v] = e));
  new Set(equation.i).forEach((v) => typeof v === "number" && USERS[v].push(e));
});

function usesOf(v) {
  if (!USERS[v].length) return "";
  const rows = USERS[v].slice(0, 12).map((e) => {
    const equation = DATA.equations[e];
    const shares = (equation.p || []).filter(([operand]) => equation.i[operand] === v).map(([, , share]) => share);
    const made = equation.y.length ? `${called(DATA.variables[equation.y[0]])} = ` : "";
    return `<li>${link(`e${e}`, `${made}${escaped(equation.o)}`)}<span class="share">${escaped(shares.join(", "))}</span></li>`;
  });
  const more = USERS[v].length > 12 ? `<li class="quiet">and ${USERS[v].length - 12} more</li>` : "";
  const total = USERS[v].length > 1 ? "what each adds to the gradient" : "what it adds to the gradient";
  return `<h3>Used by</h3><div class="quiet">${total}</div><ul>${rows.join("")}${more}</ul>`;
}

function aboutEquation(e) {
  const equation = DATA.equations[e];
  const [first] = equation.y, variable = DATA.variables[first];
  let text = variable
    ? `<h2>${called(variable)}</h2><p class="kind">${escaped(variable.t)} · made by ${escaped(equation.o)}</p>`
    : `<h2 class="words">${escaped(equation.o)}</h2>`;
  text += `<p class="formula">${escaped(equation.f)}</p>`;
  for (const v of equation.y.slice(0, 3)) {
    if (equation.y.length > 1) text += `<h3>${called(DATA.variables[v])} · ${escaped(DATA.variables[v].t)}</h3>`;
    text += amounts(DATA.variables[v]);
  }
  text += "<h3>Pulled back to its operands</h3>";
  const pulls = equation.p || [];
  text += pulls.length ? pulls.map(([operand, line, share]) => {
    const v = equation.i[operand];
    const where = typeof v === "number" ? link(`v${v}`, `to ${called(DATA.variables[v])}`) : "";
    return `<p class="formula">${escaped(line)}</p><div class="share">= ${escaped(share)} <span class="quiet">${where}</span></div>`;
  }).join("") : `<div class="quiet">nothing${equation.r ? `: ${escaped(equation.r)}` : ""}</div>`;
  equation.y.slice(0, 3).forEach((v) => (text += usesOf(v)));
  return text + costs(equation, e);
}

function costs(equation, e) {
  const rows = [["Kept", bytes(keptOf(e))], ["Flops", amount(flopsOf(e))]];
  if (equation.w) rows.push(["Source", `<span class="code">${escaped(equation.w)}</span>`]);
  if (equation.s) rows.push(["Scope", escaped(equation.s)]);
  if (equation.q) rows.push(["Parameters", `<span class="code">${escaped(equation.q)}</span>`]);
  if (equation.r) rows.push(["Rule", escaped(equation.r)]);
  return `<h3>Costs and origin</h3><dl>${rows.map(([k, v]) => `<dt>${k}</dt><dd>${v}</dd>`).join("")}</dl>`;
}

function aboutVariable(v) {
  if (MAKER[v] >= 0) return aboutEquation(MAKER[v]);
  const variable = DATA.variables[v];
  const kind = { input: "argument", constant: "constant", literal: "constant" }[variable.k] || variable.k;
  const path = variable.m ? `<span class="code">${escaped(variable.n)}</span> · ` : "";
  const kept = variable.b ? `<h3>Kept</h3><div>${bytes(variable.b)}</div>` : "";
  return `<h2>${called(variable)}</h2><p class="kind">${path}${escaped(variable.t)} · ${kind}</p>${amounts(variable)}${usesOf(v)}${kept}`;
}

// The first NaN or infinity, with what made it.
function aboutFirst() {
  const first = DATA.first;
  if (!first) return "";
  const rows = Object.entries(first.rows).map(([k, v]) => `<dt>${k}</dt><dd>${escaped(v)}</dd>`).join("");
  const entry = first.e < 0 ? escaped(first.entry) : link(`e${first.e}`, escaped(first.entry));
  return `<section class="alarm"><h3>The first ${first.what} that is not finite</h3><div class="number">${entry}</div>
    <p>${escaped(first.cause)}</p><dl>${rows}</dl>${first.advice ? `<p class="quiet">${escaped(first.advice)}</p>` : ""}</section>`;
}

// What is notable about gradients: in the whole graph, or in a scope.
function aboutSignals(s) {
  const inside = new Set(DATA.scopes[s].e);
  const found = DATA.signals.filter(([, v]) => s === 0 || inside.has(MAKER[v]) || USERS[v].some((e) => inside.has(e)));
  if (!found.length) return "";
  const rows = found.slice(0, 8).map(([kind, v, message]) =>
    `<li><i class="sort ${SORT[kind]}">${escaped(BADGE[kind] || kind)}</i><span>${link(`v${v}`, called(DATA.variables[v]))} <span class="quiet">${escaped(message)}</span></span></li>`);
  const more = found.length > 8 ? `<li class="quiet">and ${found.length - 8} more</li>` : "";
  return `<h3>Notable</h3><ul class="signals">${rows.join("")}${more}</ul>`;
}

const notable = (v) => DATA.signals.filter(([, of]) => of === v).map(([kind, , message, line]) =>
  `<p class="notable"><i class="sort ${SORT[kind]}">${escaped(BADGE[kind] || kind)}</i> ${escaped(message)}${line ? ` <span class="code">${escaped(line)}</span>` : ""}</p>`).join("");

function aboutScope(s) {
  const scope = DATA.scopes[s], whole = DATA.scopes[0];
  const counts = new Map();
  for (const e of scope.e) counts.set(DATA.equations[e].o, (counts.get(DATA.equations[e].o) || 0) + 1);
  const common = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 8);
  const share = (part, all, shown) =>
    `<dd>${shown}${s && all ? ` <span class="quiet">${((100 * part) / all).toFixed(1)} %</span>` : ""}<div class="meter"><i style="width:${all ? (100 * part) / all : 0}%"></i></div></dd>`;
  const size = scope.size === undefined ? "none" : typeof scope.size === "number" ? `at most ${number(scope.size)} <span class="quiet">(root mean square)</span>` : { zero: "zero", nan: "NaN", inf: "infinite" }[scope.size];
  return `<h2 class="words">${escaped(scope.n || DATA.title)}</h2>
    <p class="kind">${[scope.note, s ? scope.p : DATA.scopes.length > 1 && `${DATA.scopes.length - 1} scopes`].filter(Boolean).map(escaped).join(" · ")}</p>${s ? "" : aboutFirst()}${aboutSignals(s)}
    <h3>In it</h3><dl><dt>Equations</dt>${share(scope.e.length, whole.e.length, scope.e.length)}
    <dt>Kept</dt>${share(scope.kept, whole.kept, bytes(scope.kept))}
    <dt>Flops</dt>${share(scope.flops, whole.flops, amount(scope.flops))}<dt>Gradients</dt><dd>${size}</dd></dl>
    <h3>Operations</h3><ul>${common.map(([o, n]) => `<li><span>${escaped(o)}</span><span class="quiet">${n}</span></li>`).join("")}</ul>`;
}

function aboutWire(wire) {
  return `<h2 class="words">${wire.v.length === 1 ? "A value on its way" : `${wire.v.length} values on their way`}</h2>` +
    wire.v.slice(0, 8).map((v) => {
      const variable = DATA.variables[v];
      return `<h3>${called(variable)} · ${escaped(variable.t)}</h3><div class="number" style="color:var(--value)">${escaped(variable.v?.[0] ?? "")}</div>
        <div class="number" style="color:var(--gradient)">${escaped(variable.g?.[0] ?? "")}</div>`;
    }).join("");
}

const HELP = `<h3>Keys</h3><div class="keys-help"><kbd>Enter</kbd><span>open or close a scope where it stands, select a value</span>
  <kbd>Shift Enter</kbd><span>a scope alone, also by a double click</span>
  ${DATA.scopes.length > 1 ? "<kbd>E C</kbd><span>open, close all scopes</span>" : ""}
  <kbd>Esc</kbd><span>let go, close the scope around, one scope up</span><kbd>← ↑ ↓ →</kbd><span>to the next card</span>
  <kbd>/</kbd><span>find by name</span><kbd>+ − 0</kbd><span>closer, farther, all of it</span></div>`;

function aboutCard(card) {
  if (card.s !== undefined) return aboutScope(card.s);
  if (card.e !== undefined) return aboutEquation(card.e);
  const go = card.k === "stub" && (card.go >= 0 || MAKER[card.v] >= 0)
    ? `<p>${link(card.side === "in" ? `v${card.v}` : `s${card.go}`, card.side === "in" ? "Go to where it is made" : "Go to where it is used")}</p>` : "";
  return aboutVariable(card.v) + (card.side === "out" && card.go < 0 ? "" : go);
}

let scrolled = false;
$("panel").addEventListener("scroll", () => (scrolled = true));

function showPanel(html) {
  $("panel").innerHTML = html;
  if (scrolled) $("panel").scrollTop = 0; // which lays the page out
  scrolled = false;
}
