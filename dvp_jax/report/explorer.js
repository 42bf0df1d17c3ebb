"use strict";

// Shows one example at a time, as one run or two runs decoded it. Text from data and model enters the page as text
// nodes only, never as markup.

const FIELDS = ["method", "settings", "threshold", "name"];
const NO_RUN = "";

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("traces").textContent);
const panel = byId("panel");

const sides = [...document.querySelectorAll(".run")].map((element, index) => ({
  index,
  selects: Object.fromEntries([...element.querySelectorAll("select")].map((select) => [select.dataset.field, select])),
  output: element.querySelector(".output"),
  settings: element.querySelector(".settings"),
  text: element.querySelector(".text"),
  tokens: element.querySelector(".tokens"),
  wanted: {}, // the reader's choices, kept for the next example
  chosen: null, // the output on display
}));

/** Makes an element. Children that are strings become text nodes. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Fills a select with the values, and selects the wanted one if it is among them. */
function offer(select, values, wanted, labels = values) {
  select.replaceChildren(...values.map((value, index) => new Option(labels[index], value)));
  select.value = values.includes(wanted) ? wanted : values[0];
}

function examplesOfTask() {
  return data.examples.filter((example) => example.task === byId("task").value);
}

/** Returns the fields of an output's run as strings, as the selects hold them. */
function fieldsOf(output) {
  const run = data.runs[output.run];
  return Object.fromEntries(FIELDS.map((field) => [field, String(run[field] ?? "none")]));
}

/** Returns the output that a side's selects name. Each select offers the values that the earlier ones allow. */
function choose(side, example) {
  let outputs = example.outputs;
  for (const field of FIELDS) {
    const values = [...new Set(outputs.map((output) => fieldsOf(output)[field]))];
    const labels = values.map((value) => value || "none");
    if (field === "method" && side.index === 1) {
      values.unshift(NO_RUN);
      labels.unshift("nothing");
    }
    const select = side.selects[field];
    offer(select, values, side.wanted[field], labels);
    select.parentElement.hidden = field !== "method" && values.length < 2;
    outputs = outputs.filter((output) => fieldsOf(output)[field] === select.value);
  }
  return outputs[0] ?? null;
}

function paint(element, numLayers, layer) {
  [element.style.backgroundColor, element.style.color] = data.colours[numLayers][layer - 1];
}

function makeToken(output, other, index) {
  const piece = data.pieces[output.pieces[index]];
  const begins = piece.startsWith("▁") && piece.length > 1; // SentencePiece writes it for the space before a word
  const label = begins ? piece.slice(1) : piece;
  const numLayers = data.runs[output.run].num_layers;
  const layer = output.exit_layers[index];
  const differs = other !== null && other.pieces[index] !== output.pieces[index];
  const token = make(
    "button",
    {
      type: "button",
      class: ["token", begins && "begins", differs && "differs"].filter(Boolean).join(" "),
      tabindex: index === 0 ? 0 : -1,
      "data-exit": layer,
      "aria-label": `${label}, exit layer ${layer} of ${numLayers}${differs ? ", differs from the other run" : ""}`,
    },
    label,
  );
  paint(token, numLayers, layer);
  return token;
}

function renderRun(side, other) {
  const output = side.chosen;
  side.output.hidden = output === null;
  if (output === null) return;
  const run = data.runs[output.run];
  const threshold = run.threshold === null ? [] : [`threshold ${run.threshold}`];
  side.settings.textContent = [run.name, ...threshold, run.settings].filter(Boolean).join(", ");
  side.text.textContent = output.text;
  side.tokens.replaceChildren(...output.pieces.map((_, index) => makeToken(output, other, index)));
  side.tokens.setAttribute("aria-label", `Tokens of ${run.name}`);
}

function renderLegend() {
  const outputs = sides.map((side) => side.chosen).filter(Boolean);
  const depths = new Set(outputs.map((output) => data.runs[output.run].num_layers));
  const scales = [...depths].map((numLayers) => {
    const scale = make("ol", { "aria-label": `Exit layers, 1 to ${numLayers}` });
    for (let layer = 1; layer <= numLayers; layer++) {
      const item = make("li", {}, String(layer));
      paint(item, numLayers, layer);
      scale.append(item);
    }
    return scale;
  });
  const differs = make("span", {}, make("span", { class: "sample differs" }), " differs from the other run");
  byId("legend").replaceChildren("Exit layer", ...scales, ...(outputs.length > 1 ? [differs] : []));
}

function render() {
  const examples = examplesOfTask();
  const position = Number(byId("example").value);
  const example = examples[position];
  byId("position").textContent = `${position + 1} of ${examples.length}`;
  byId("previous").disabled = position === 0;
  byId("next").disabled = position === examples.length - 1;
  byId("prompt").textContent = example.prompt;
  byId("prompt").scrollTop = 0;
  byId("references").replaceChildren(...example.references.map((reference) => make("li", {}, reference)));
  for (const side of sides) side.chosen = choose(side, example);
  const [first, second] = sides;
  byId("runs").classList.toggle("single", second.chosen === null);
  renderRun(first, second.chosen);
  renderRun(second, first.chosen);
  renderLegend();
  clear();
}

function renderTask() {
  const examples = examplesOfTask();
  const positions = examples.map((_, index) => String(index));
  offer(byId("example"), positions, "0", examples.map((example) => example.id));
  render();
}

function step(change) {
  byId("example").value = String(Number(byId("example").value) + change);
  render();
}

function clear() {
  document.querySelector(".token.shown")?.classList.remove("shown");
  panel.replaceChildren(make("p", { class: "hint" }, "No token is chosen."));
}

/** Makes a table with one row a depth. The depths after the exit are under a heading of their own. */
function makeDepths(output, index) {
  const exit = output.exit_layers[index];
  const rows = output.candidates[index].map((candidate, at) => {
    const confidence = output.confidences[index][at];
    return make(
      "tr",
      at + 1 === exit ? { class: "exit" } : {},
      make("td", { class: "number" }, at + 1 === exit ? `exit ${at + 1}` : String(at + 1)),
      make("td", {}, make("code", {}, data.pieces[candidate])),
      make("td", { class: "number" }, confidence === null ? "not read" : confidence.toFixed(3)),
    );
  });
  const heading = make("tr", {}, make("th", { colspan: 3, scope: "rowgroup" }, "had it continued"));
  const columns = ["depth", "candidate", "confidence"];
  const numeric = (name) => (name === "candidate" ? {} : { class: "number" });
  return make(
    "table",
    {},
    make("thead", {}, make("tr", {}, ...columns.map((name) => make("th", { scope: "col", ...numeric(name) }, name)))),
    make("tbody", {}, ...rows.slice(0, exit)),
    ...(exit < rows.length ? [make("tbody", { class: "after" }, heading, ...rows.slice(exit))] : []),
  );
}

function describeRank(rank, run) {
  const place = `rank ${rank} at depth ${run.prune_layer}, where 0 is the likeliest and ${run.prune_size} were kept`;
  return rank < run.prune_size ? `In the kept set: ${place}.` : `Not in the kept set: ${place}.`;
}

function show(side, token) {
  if (token.classList.contains("shown")) return;
  clear();
  token.classList.add("shown");
  const output = side.chosen;
  const run = data.runs[output.run];
  const index = [...side.tokens.children].indexOf(token);
  const rank = output.ranks[index];
  panel.replaceChildren(
    make("h3", {}, make("code", {}, data.pieces[output.pieces[index]])),
    make("p", {}, `Token ${index + 1} of ${run.name}: exit after layer ${output.exit_layers[index]} of ${run.num_layers}.`),
    ...(rank === null ? [] : [make("p", {}, describeRank(rank, run))]),
    makeDepths(output, index),
  );
}

/** Moves the focus within a run by the arrow keys. The Tab key stops at one token of each run only. */
function move(event) {
  const tokens = [...event.currentTarget.children];
  const at = tokens.indexOf(document.activeElement);
  const last = tokens.length - 1;
  const next = { ArrowLeft: at - 1, ArrowUp: at - 1, ArrowRight: at + 1, ArrowDown: at + 1, Home: 0, End: last }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  tokens[Math.min(Math.max(next, 0), last)].focus();
}

for (const side of sides) {
  for (const [field, select] of Object.entries(side.selects)) {
    select.addEventListener("change", () => {
      side.wanted[field] = select.value;
      render();
    });
  }
  for (const name of ["pointerover", "focusin", "click"]) {
    side.tokens.addEventListener(name, (event) => {
      const token = event.target.closest(".token");
      if (token !== null) show(side, token);
    });
  }
  side.tokens.addEventListener("focusin", (event) => {
    for (const token of side.tokens.children) token.tabIndex = token === event.target ? 0 : -1;
  });
  side.tokens.addEventListener("keydown", move);
}
document.addEventListener("keydown", (event) => event.key === "Escape" && clear());
byId("task").addEventListener("change", renderTask);
byId("example").addEventListener("change", render);
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));

const outputs = data.examples[0].outputs;
sides[0].wanted = fieldsOf(outputs[0]);
sides[1].wanted = outputs.length > 1 ? fieldsOf(outputs[outputs.length - 1]) : { method: NO_RUN };
offer(byId("task"), [...new Set(data.examples.map((example) => example.task))]);
byId("explorer").hidden = false;
renderTask();
