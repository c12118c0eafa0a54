/* Published accuracy against cost: one mark a model, a name on hover and on focus, axes to choose. */
"use strict";

(() => {
  const { el, svg, labelled, select, data } = explorer;
  const place = document.getElementById("zoo-plot");
  const zoo = data("zoo-data");
  if (!place || !zoo) return;

  const SHAPES = ["circle", "square", "triangle", "diamond", "down", "hexagon", "cross"];
  const families = Object.keys(zoo.colours);
  const accuracies = Object.entries(zoo.metrics).flatMap(([task, metrics]) =>
    Object.entries(metrics).map(([metric, words]) => ({ task, metric, words })));
  const costs = [
    { key: "gflops", words: "GFLOPs, counted here as the papers count", value: (model) => model.gflops },
    { key: "params", words: "millions of parameters, counted here", value: (model) => model.params },
    ...Object.entries(zoo.speeds).map(([speed, words]) => ({ key: speed, words: `measured: ${words}`, value: (model) => (model.speed || {})[speed] })),
  ];
  let models = zoo.models;
  let accuracy = accuracies[0];
  let cost = costs[0];

  const stage = el("div", { class: "explorer-stage" });
  const tip = el("p", { class: "explorer-tip", role: "status" });
  const legend = el("ul", { class: "explorer-legend", "aria-label": "Families" });

  /* Round numbers for an axis: 1, 2 and 5 times powers of ten, or even steps. */
  function logTicks(low, high) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const digit of [1, 2, 5]) ticks.push(digit * 10 ** power);
    }
    return ticks.filter((tick) => tick >= low && tick <= high);
  }

  function evenTicks(low, high) {
    const step = [0.5, 1, 2, 5, 10, 20].find((size) => (high - low) / size <= 7) || 50;
    const ticks = [];
    for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) ticks.push(tick);
    return ticks;
  }

  function mark(shape, x, y, r, colour) {
    const points = {
      square: [[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]],
      triangle: [[0, -1.15], [1.05, 0.85], [-1.05, 0.85]],
      diamond: [[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]],
      down: [[0, 1.15], [1.05, -0.85], [-1.05, -0.85]],
      hexagon: [[1.1, 0], [0.55, 0.95], [-0.55, 0.95], [-1.1, 0], [-0.55, -0.95], [0.55, -0.95]],
      cross: [[-0.4, -1.2], [0.4, -1.2], [0.4, -0.4], [1.2, -0.4], [1.2, 0.4], [0.4, 0.4], [0.4, 1.2], [-0.4, 1.2], [-0.4, 0.4], [-1.2, 0.4], [-1.2, -0.4], [-0.4, -0.4]],
    }[shape];
    if (!points) return svg("circle", { cx: x, cy: y, r, fill: colour });
    return svg("polygon", { points: points.map(([dx, dy]) => `${x + r * dx},${y + r * dy}`).join(" "), fill: colour });
  }

  const look = (family) => {
    const place = families.indexOf(family);
    return place < 0 ? ["square", "var(--explorer-baseline)"] : [SHAPES[place % SHAPES.length], zoo.colours[family]];
  };

  function points() {
    const known = [...models, ...(accuracy.task === "classification" ? zoo.baselines : [])];
    return known
      .filter((model) => model.task === accuracy.task)
      .map((model) => ({ model, x: cost.value(model), y: (model.published || {})[accuracy.metric] }))
      .filter(({ x, y }) => x !== undefined && y !== undefined)
      .sort((one, other) => one.x - other.x || one.y - other.y);
  }

  const sentence = ({ model, x, y }) => {
    const counted = zoo.baselines.includes(model) && (cost.key === "gflops" || cost.key === "params");
    const words = counted ? cost.words.replace("counted here as the papers count", "published").replace("counted here", "published") : cost.words;
    return `${model.name} (${model.family}): ${y} published ${accuracy.words}; ${x} ${words}`;
  };

  function draw() {
    const shown = points();
    const width = Math.max(280, Math.floor(stage.clientWidth));
    const height = Math.round(Math.min(440, Math.max(300, width * 0.6)));
    const [left, right, top, bottom] = [46, 14, 12, 52];
    tip.textContent = shown.length
      ? `${shown.length} models. Grey: Swin and ConvNeXt, for comparison, where they were published for this task.`
      : "No model that the filters leave has both figures. Speed was measured for classifiers only.";
    legend.replaceChildren();
    if (!shown.length) {
      stage.replaceChildren();
      return;
    }
    const xs = shown.map(({ x }) => x);
    const ys = shown.map(({ y }) => y);
    const [x0, x1] = [Math.min(...xs) / 1.15, Math.max(...xs) * 1.15];
    const margin = Math.max(0.5, (Math.max(...ys) - Math.min(...ys)) * 0.08);
    const [y0, y1] = [Math.min(...ys) - margin, Math.max(...ys) + margin];
    const toX = (x) => left + (Math.log(x / x0) / Math.log(x1 / x0)) * (width - left - right);
    const toY = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - top - bottom);

    const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${accuracy.words} against ${cost.words}` });
    for (const tick of evenTicks(y0, y1)) {
      picture.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: toY(tick), y2: toY(tick) }),
        svg("text", { x: left - 7, y: toY(tick) + 4, "text-anchor": "end" }, `${+tick.toFixed(1)}`));
    }
    for (const tick of logTicks(x0, x1)) {
      picture.append(svg("line", { class: "grid", x1: toX(tick), x2: toX(tick), y1: top, y2: height - bottom }),
        svg("text", { x: toX(tick), y: height - bottom + 17, "text-anchor": "middle" }, `${+tick.toPrecision(2)}`));
    }
    const shortCost = cost.words.split(" (")[0];
    picture.append(svg("text", { class: "axis", x: (left + width - right) / 2, y: height - 10, "text-anchor": "middle" }, shortCost));

    const marks = shown.map((point, i) => {
      const [shape, colour] = look(point.model.family);
      const group = svg("g", { class: "mark", tabindex: i ? "-1" : "0", role: "img", "aria-label": sentence(point), "data-name": point.model.name },
        svg("circle", { class: "ring", cx: toX(point.x), cy: toY(point.y), r: 10 }), mark(shape, toX(point.x), toY(point.y), 5.5, colour));
      const tell = () => {
        tip.textContent = `${sentence(point)}.`;
        picture.querySelectorAll(".chosen").forEach((other) => other.classList.remove("chosen"));
        group.classList.add("chosen");
        name.textContent = point.model.name;
        const end = toX(point.x) > width / 2;
        name.setAttribute("x", toX(point.x) + (end ? -12 : 12));
        name.setAttribute("y", Math.max(14, toY(point.y) - 9));
        name.setAttribute("text-anchor", end ? "end" : "start");
      };
      group.addEventListener("mouseenter", tell);
      group.addEventListener("focus", tell);
      group.addEventListener("click", tell);
      group.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -i, End: shown.length - 1 - i }[event.key];
        const next = marks[i + step];
        if (step === undefined || !next) return;
        event.preventDefault();
        group.setAttribute("tabindex", "-1");
        next.setAttribute("tabindex", "0");
        next.focus();
      });
      return group;
    });
    // Grey ones lie below; the order of `marks` stays that of the axis, for the arrow keys.
    picture.append(...[...marks].sort((one, other) => isFamily(other) - isFamily(one)).reverse());
    const name = svg("text", { class: "name", "aria-hidden": "true" });
    picture.append(name);
    stage.replaceChildren(picture);

    const there = new Set(shown.map(({ model }) => model.family));
    for (const family of [...families.filter((one) => there.has(one)), ...[...there].filter((one) => !families.includes(one))]) {
      const [shape, colour] = look(family);
      legend.append(el("li", {}, svg("svg", { width: 14, height: 14, "aria-hidden": "true" }, mark(shape, 7, 7, 5, colour)), family));
    }
  }

  const isFamily = (group) => Number(zoo.baselines.every((model) => model.name !== group.dataset.name));

  const up = select(accuracies.map(({ words }, i) => [String(i), `published ${words}`]), "0", (value) => {
    accuracy = accuracies[Number(value)];
    draw();
  });
  const across = select(costs.map(({ words }, i) => [String(i), words]), "0", (value) => {
    cost = costs[Number(value)];
    draw();
  });
  up.dataset.axis = "up";
  across.dataset.axis = "across";
  place.append(
    el("div", { class: "explorer-fields", role: "group", "aria-label": "Axes" }, labelled("Upwards", up), labelled("To the right", across)),
    stage, tip, legend);
  document.addEventListener("zoo:filtered", (event) => {
    models = event.detail;
    draw();
  });
  let width = 0;
  new ResizeObserver(() => {
    if (stage.clientWidth !== width) {
      width = stage.clientWidth;
      draw();
    }
  }).observe(stage);
  document.dispatchEvent(new Event("zoo:ask"));
})();
