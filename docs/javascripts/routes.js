/* A walk through every scan pattern. `explorer.order` gives the same pixels as vssm_kernels.route_order; a test compares. */
"use strict";

/* The numbers of the pixels of a height x width map, row by row, in the order in which a route visits them. */
explorer.order = (route, height, width) => {
  const [stepDown, stepRight] = route.stride;
  let grid = [];
  for (let row = route.offset[0]; row < height; row += stepDown) {
    const line = [];
    for (let column = route.offset[1]; column < width; column += stepRight) line.push(row * width + column);
    if (line.length) grid.push(line);
  }
  if (route.mirror[0]) grid.reverse();
  if (route.mirror[1]) grid = grid.map((line) => line.slice().reverse());
  const transposed = (lines) => (lines.length ? lines[0].map((_, i) => lines.map((line) => line[i])) : lines);
  if (route.transpose) grid = transposed(grid);
  let order = [];
  if (route.path === "snake") {
    order = grid.flatMap((line, i) => (i % 2 ? line.slice().reverse() : line));
  } else if (route.path === "diagonal") {
    const [rows, columns] = [grid.length, grid.length ? grid[0].length : 0];
    for (let diagonal = 0; diagonal < rows + columns - 1; diagonal++) {
      const pixels = [];
      for (let row = Math.max(0, diagonal - columns + 1); row <= Math.min(diagonal, rows - 1); row++) pixels.push(grid[row][diagonal - row]);
      order.push(...(diagonal % 2 ? pixels : pixels.reverse()));
    }
  } else if (route.path === "spiral") {
    while (grid.length) {
      order.push(...grid[0]);
      grid = transposed(grid.slice(1)).reverse(); // the rest, turned to the left
    }
  } else {
    order = grid.flat();
  }
  return route.reverse ? order.reverse() : order;
};

(() => {
  const { el, svg, labelled, select, data, calm, order } = explorer;
  const place = document.getElementById("zoo-routes");
  const patterns = data("routes-data");
  if (!place || !patterns) return;

  const MOST = 24; // rows and columns: more cannot be told apart on a telephone
  const SPEEDS = [["1", "1 step a second"], ["3", "3 steps a second"], ["8", "8 steps a second"], ["25", "25 steps a second"]];
  const state = { pattern: 0, height: 6, width: 6, step: 0, speed: calm.matches ? 1 : 8, timer: null };
  let walks = [];
  let steps = 0;

  const nth = (stride) => (stride === 1 ? "" : stride === 2 ? "every second " : `every ${stride}th `);
  /* Such as "column by column, backwards". */
  function words(route) {
    const path = {
      raster: route.transpose ? "column by column" : "row by row",
      snake: route.transpose ? "columns to and fro" : "rows to and fro",
      diagonal: "diagonals to and fro",
      spiral: "a spiral inwards",
    }[route.path];
    const parts = [path];
    const [down, right] = route.stride;
    if (down > 1 || right > 1) {
      const [row, column] = route.offset;
      parts.push(`${nth(down)}row and ${nth(right)}column, from row ${row + 1}, column ${column + 1}`);
    }
    if (route.mirror[0]) parts.push("upside down");
    if (route.mirror[1]) parts.push("from the right");
    if (route.reverse) parts.push("backwards");
    return parts.join(", ");
  }

  function build() {
    stop();
    walks = [];
    patterns[state.pattern].sequences.forEach((sequence, number) => {
      let before = 0;
      sequence.forEach((route) => {
        const pixels = order(route, state.height, state.width);
        walks.push({ route, number, pixels, before, joined: sequence.length > 1 });
        before += pixels.length;
      });
    });
    steps = Math.max(...walks.map((walk) => walk.before + walk.pixels.length), 1);
    slider.max = steps;
    state.step = steps; // the whole pattern, until somebody walks
    stage.replaceChildren(...walks.map(panel));
    show();
  }

  function panel(walk, index) {
    const cell = Math.max(9, Math.min(34, Math.floor(250 / Math.max(state.height, state.width))));
    const [w, h] = [cell * state.width, cell * state.height];
    const middle = (pixel) => [(pixel % state.width + 0.5) * cell, (Math.floor(pixel / state.width) + 0.5) * cell];
    walk.cells = new Map();
    const picture = svg("svg", { width: w + 2, height: h + 2, viewBox: `-1 -1 ${w + 2} ${h + 2}`, "aria-hidden": "true" });
    for (let pixel = 0; pixel < state.height * state.width; pixel++) {
      const [x, y] = middle(pixel);
      const box = svg("rect", { x: x - cell / 2, y: y - cell / 2, width: cell, height: cell });
      walk.cells.set(pixel, box);
      picture.append(box);
    }
    walk.line = svg("polyline", { class: "walk" });
    walk.head = svg("circle", { class: "head", r: cell * 0.3 });
    walk.first = svg("circle", { class: "first", r: cell * 0.36 });
    walk.middle = middle;
    picture.append(walk.line, walk.first, walk.head);
    walk.texts = [];
    if (cell >= 20) {
      walk.pixels.forEach((pixel, i) => {
        const [x, y] = middle(pixel);
        const text = svg("text", { x, y: y + 4, "text-anchor": "middle" }, String(walk.before + i + 1));
        walk.texts.push(text);
        picture.append(text);
      });
    }
    const title = walk.joined ? `Route ${index + 1} (joined, sequence ${walk.number + 1})` : `Route ${index + 1}`;
    return el("figure", { class: "explorer-route" }, picture, el("figcaption", {}, el("strong", {}, title), `: ${words(walk.route)}`));
  }

  function show() {
    for (const walk of walks) {
      const count = Math.max(0, Math.min(walk.pixels.length, state.step - walk.before));
      const seen = walk.pixels.slice(0, count);
      walk.line.setAttribute("points", seen.map((pixel) => walk.middle(pixel).join(",")).join(" "));
      for (const box of walk.cells.values()) box.classList.remove("seen");
      for (const pixel of seen) walk.cells.get(pixel).classList.add("seen");
      walk.texts.forEach((text, i) => text.classList.toggle("later", i >= count));
      for (const [node, pixel] of [[walk.first, seen[0]], [walk.head, seen[count - 1]]]) {
        node.classList.toggle("later", pixel === undefined);
        if (pixel !== undefined) {
          const [x, y] = walk.middle(pixel);
          node.setAttribute("cx", x);
          node.setAttribute("cy", y);
        }
      }
    }
    slider.value = state.step;
    slider.setAttribute("aria-valuetext", `step ${state.step} of ${steps}`);
    const heads = walks.flatMap((walk, i) => {
      const count = state.step - walk.before;
      if (count < 1 || count > walk.pixels.length) return [];
      const pixel = walk.pixels[count - 1];
      return [`route ${i + 1} at row ${Math.floor(pixel / state.width) + 1}, column ${pixel % state.width + 1}`];
    });
    // While it plays a screen reader would never fall silent.
    status.setAttribute("aria-live", state.timer ? "off" : "polite");
    status.textContent = `Step ${state.step} of ${steps}${heads.length ? `: ${heads.join("; ")}` : ""}.`;
    play.textContent = state.timer ? "Pause" : "Play";
  }

  function go(step) {
    state.step = Math.max(0, Math.min(steps, step));
    if (state.step === steps) stop();
    show();
  }

  function stop() {
    clearInterval(state.timer);
    state.timer = null;
  }

  function start() {
    stop();
    if (state.step >= steps) state.step = 0;
    state.timer = setInterval(() => go(state.step + 1), 1000 / state.speed);
    show();
  }

  const stage = el("div", { class: "explorer-routes" });
  const status = el("p", { class: "explorer-status", role: "status" });
  const slider = el("input", { type: "range", min: 0, max: 1, step: 1, oninput: () => {
    stop();
    go(Number(slider.value));
  } });
  const button = (text, onclick) => el("button", { type: "button", class: "explorer-button", onclick }, text);
  const play = button("Play", () => {
    if (state.timer) {
      stop();
      show();
    } else {
      start();
    }
  });
  play.dataset.play = "";
  const walkBy = (number) => () => {
    stop();
    go(state.step + number);
  };
  const side = (key, title) => {
    const control = el("input", { type: "number", min: 1, max: MOST, value: state[key], inputmode: "numeric", onchange: () => {
      const value = Math.round(Number(control.value));
      state[key] = Math.max(1, Math.min(MOST, value || state[key]));
      control.value = state[key];
      build();
    } });
    control.dataset.side = key;
    return labelled(title, control);
  };
  const choice = select(patterns.map(({ title }, i) => [String(i), title]), "0", (value) => {
    state.pattern = Number(value);
    build();
  });
  choice.dataset.pattern = "";
  const speed = select(SPEEDS, String(state.speed), (value) => {
    state.speed = Number(value);
    if (state.timer) start();
  });
  speed.dataset.speed = "";
  place.append(
    el("div", { class: "explorer-fields", role: "group", "aria-label": "Pattern and map" },
      labelled("Pattern", choice), side("height", "Rows"), side("width", "Columns"), labelled("Speed", speed)),
    el("div", { class: "explorer-buttons", role: "group", "aria-label": "Walk" },
      play, button("Step back", walkBy(-1)), button("Step on", walkBy(1)), button("From the start", () => {
        stop();
        go(0);
      }), labelled("Step", slider)),
    status, stage);
  build();
})();
