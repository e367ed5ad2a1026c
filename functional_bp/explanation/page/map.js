// A small map of the picture, where the picture is larger than the window: the cards, and the part
// that is seen as a rectangle that can be moved.

const MAP = { w: 190, h: 140 }; // at most
const chart = $("map");
let chartScale = 1;

function drawMap() {
  const { w, h, cards } = shown;
  chartScale = Math.min(MAP.w / w, MAP.h / h);
  chart.setAttribute("width", Math.ceil(Math.max(24, w * chartScale)));
  chart.setAttribute("height", Math.ceil(Math.max(24, h * chartScale)));
  const least = 1.5 / chartScale; // what is smaller would not be seen
  const outline = (kind) => cards.filter((card) => (card.k === "frame") === kind).map((card) => {
    const width = Math.max(card.w, least), height = Math.max(card.h, least);
    return `M${(card.x - width / 2).toFixed(1)},${(card.y - height / 2).toFixed(1)}h${width.toFixed(1)}v${height.toFixed(1)}h${-width.toFixed(1)}z`;
  }).join("");
  const scale = { transform: `scale(${chartScale})` };
  chart.replaceChildren(
    svg("path", { class: "frames", d: outline(true), ...scale }),
    svg("path", { class: "cards", d: outline(false), ...scale }),
    svg("rect", { class: "seen", rx: 2 }),
  );
}

function moveMap() {
  const { width, height } = room;
  const larger = at.k * shown.w > width + 1 || at.k * shown.h > height + 1;
  chart.classList.toggle("needed", larger);
  if (!larger) return;
  const by = chartScale / at.k, most = [Number(chart.getAttribute("width")), Number(chart.getAttribute("height"))];
  const part = (start, size, end) => {
    const from = Math.min(end - 4, Math.max(1, -start * by)), to = Math.max(4, Math.min(end - 1, (size - start) * by));
    return [from, Math.max(3, to - from)];
  };
  const [x, w] = part(at.x, width, most[0]), [y, h] = part(at.y, height, most[1]);
  for (const [key, value] of Object.entries({ x, y, width: w, height: h })) chart.lastChild.setAttribute(key, value.toFixed(1));
}

// The point of the map under the pointer comes into the middle of the window.
function goOnMap(event) {
  const box = chart.getBoundingClientRect(), { width, height } = room;
  const x = (event.clientX - box.left) / chartScale, y = (event.clientY - box.top) / chartScale;
  cancelAnimationFrame(flight);
  place({ k: at.k, x: width / 2 - at.k * x, y: height / 2 - at.k * y });
}

chart.addEventListener("pointerdown", (event) => {
  chart.setPointerCapture(event.pointerId);
  goOnMap(event);
});
chart.addEventListener("pointermove", (event) => chart.hasPointerCapture(event.pointerId) && goOnMap(event));
