/* The table of models: it sorts, filters, and tells the plot which models are left (event "zoo:filtered"). */
"use strict";

(() => {
  const { el, labelled, select, data } = explorer;
  const place = document.getElementById("zoo-table");
  const zoo = data("zoo-data");
  if (!place || !zoo) return;

  const ALL = "all";
  const SIZES = [
    ["small", "up to 15 M", (millions) => millions <= 15],
    ["middle", "15 to 40 M", (millions) => millions > 15 && millions <= 40],
    ["large", "40 to 70 M", (millions) => millions > 40 && millions <= 70],
    ["huge", "over 70 M", (millions) => millions > 70],
  ];
  const TASKS = { classification: "classification", detection: "detection", segmentation: "segmentation", pose: "pose", medical: "volumes and lesions" };
  const NONE = "–";
  const state = { task: "classification", family: ALL, size: ALL, licence: ALL, weights: ALL, words: "", sort: "name", down: false };

  const different = (key) => [...new Set(zoo.models.map((model) => model[key] || NONE))].sort();
  const filters = {
    task: (model) => model.task === state.task,
    family: (model) => model.family === state.family,
    size: (model) => SIZES.find(([name]) => name === state.size)[2](model.params),
    licence: (model) => (model.licence || NONE) === state.licence,
    weights: (model) => model.weights === state.weights,
  };

  function fits(model, but) {
    const words = state.words.toLowerCase().split(/\s+/);
    const text = `${model.name} ${model.family}`.toLowerCase();
    return words.every((word) => text.includes(word))
      && Object.entries(filters).every(([key, fit]) => key === but || state[key] === ALL || fit(model));
  }

  /* Columns of the table: a title, how a cell is written, and what it is sorted by. */
  function columns() {
    const list = [
      { key: "name", title: "model", value: (model) => model.name, cell: nameCell },
      { key: "params", title: "M", about: "millions of parameters", value: (model) => model.params, cell: (model) => model.params.toFixed(1) },
      { key: "gflops", title: "GFLOPs", about: "counted here as the papers count", value: (model) => model.gflops, cell: (model) => short(model.gflops) },
    ];
    const tasks = state.task === ALL ? Object.keys(zoo.metrics) : [state.task];
    for (const task of tasks) {
      for (const [metric, about] of Object.entries(zoo.metrics[task])) {
        if (list.some((column) => column.key === metric)) continue;
        list.push({ key: metric, title: TITLES[metric] || metric, about: `published ${about}`, value: (model) => (model.published || {})[metric], cell: (model) => figure((model.published || {})[metric]) });
      }
    }
    for (const [speed, about] of Object.entries(zoo.speeds)) {
      if (tasks.includes("classification")) {
        list.push({ key: speed, title: `img/s, ${speed}`, about: `measured ${about}`, value: (model) => (model.speed || {})[speed], cell: (model) => plain((model.speed || {})[speed]) });
      }
    }
    list.push({ key: "licence", title: "licence", value: (model) => model.licence, cell: (model) => model.licence || NONE });
    list.push({ key: "weights", title: "weights", value: (model) => model.weights, cell: weightsCell });
    return list;
  }

  const TITLES = { "Top 1 Accuracy": "top-1", "mIoU (ms+flip)": "mIoU, scales" };
  const figure = (value) => (value === undefined ? NONE : value.toFixed(1));
  const plain = (value) => (value === undefined ? NONE : String(value));
  const short = (value) => (value < 1 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : value.toFixed(0));

  function nameCell(model) {
    const family = model.paper ? el("a", { href: model.paper }, model.family) : model.family;
    return el("span", {}, el("code", {}, model.name), el("small", {}, family));
  }

  function weightsCell(model) {
    return model.address ? el("a", { href: model.address }, model.weights) : model.weights;
  }

  const status = el("p", { class: "explorer-status", role: "status" });
  const head = el("thead");
  const body = el("tbody");

  function sortBy(key) {
    state.down = state.sort === key ? !state.down : key !== "name";
    state.sort = key;
    show();
    head.querySelector(`[data-key="${CSS.escape(key)}"]`).focus();
  }

  function show() {
    const list = columns();
    let sorter = list.find((column) => column.key === state.sort);
    if (!sorter) [sorter, state.sort, state.down] = [list[0], "name", false];
    const rows = zoo.models.filter((model) => fits(model));
    // What has no figure comes last, whichever way is up.
    rows.sort((one, other) => {
      const [a, b] = [sorter.value(one), sorter.value(other)];
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      const order = typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
      return state.down ? -order : order;
    });
    head.replaceChildren(el("tr", {}, ...list.map((column) => {
      const sorted = column === sorter ? (state.down ? "descending" : "ascending") : null;
      const sign = sorted ? (state.down ? " ▼" : " ▲") : "";
      const button = el("button", { type: "button", "data-key": column.key, title: column.about, onclick: () => sortBy(column.key) },
        column.title, el("span", { "aria-hidden": "true" }, sign));
      return el("th", { scope: "col", "aria-sort": sorted }, button);
    })));
    body.replaceChildren(...rows.map((model) => el("tr", { "data-name": model.name }, ...list.map((column, i) =>
      el(i ? "td" : "th", i ? { class: typeof column.value(model) === "number" ? "number" : null } : { scope: "row" }, column.cell(model))))));
    const numbers = rows.some((model) => typeof sorter.value(model) === "number");
    const first = numbers ? (state.down ? "largest first" : "smallest first") : (state.down ? "from Z to A" : "from A to Z");
    status.textContent = `${rows.length} of ${zoo.models.length} rows, sorted by ${sorter.about || sorter.title}, ${first}.`;
    document.dispatchEvent(new CustomEvent("zoo:filtered", { detail: zoo.models.filter((model) => fits(model, "task")) }));
  }

  function filter(key, title, options) {
    const control = select([[ALL, "all"], ...options], state[key], (value) => {
      state[key] = value;
      show();
    });
    control.dataset.filter = key;
    return labelled(title, control);
  }

  const search = el("input", { type: "search", placeholder: "tiny s1l8", oninput: () => {
    state.words = search.value.trim();
    show();
  } });
  const tasks = Object.keys(zoo.metrics).filter((task) => zoo.models.some((model) => model.task === task));
  const reset = el("button", { type: "button", class: "explorer-button", onclick: () => {
    Object.assign(state, { task: ALL, family: ALL, size: ALL, licence: ALL, weights: ALL, words: "" });
    for (const control of place.querySelectorAll("select")) control.value = ALL;
    search.value = "";
    show();
  } }, "Show all");
  place.append(
    el("div", { class: "explorer-fields", role: "group", "aria-label": "Filters" },
      filter("task", "Task", tasks.map((task) => [task, TASKS[task] || task])),
      filter("family", "Family", different("family")),
      filter("size", "Parameters", SIZES.map(([name, title]) => [name, title])),
      filter("licence", "Licence of the weights", different("licence").map((name) => [name, name === NONE ? "no weights" : name])),
      filter("weights", "Weights", different("weights")),
      labelled("Words of the name", search),
      reset),
    status,
    el("div", { class: "explorer-scroll", tabindex: "0", role: "region", "aria-label": "Models" }, el("table", { class: "explorer-table" }, head, body)));
  document.addEventListener("zoo:ask", show); // a part that was loaded later
  show();
})();
