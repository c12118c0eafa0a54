/* What the explorer's parts share: elements, and the data that the page carries. */
"use strict";

const explorer = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  /* el("a", { href }, "text", otherNode): an HTML element; svg() is the same for SVG. */
  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

  let count = 0;
  /* A control with its label; `control` keeps the id that the label names. */
  function labelled(text, control) {
    control.id = control.id || `explorer-${++count}`;
    return el("div", { class: "explorer-field" }, el("label", { for: control.id }, text), control);
  }

  /* A choice: options are [value, text] pairs, or texts. */
  function select(options, chosen, onchange) {
    const control = el("select", { onchange: () => onchange(control.value) });
    for (const option of options) {
      const [value, text] = Array.isArray(option) ? option : [option, option];
      control.append(el("option", { value, selected: value === chosen }, text));
    }
    return control;
  }

  function data(id) {
    const node = document.getElementById(id);
    return node ? JSON.parse(node.textContent) : null;
  }

  return { el, svg, labelled, select, data, calm: matchMedia("(prefers-reduced-motion: reduce)") };
})();
