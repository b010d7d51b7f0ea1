"use strict";

const at = id => document.getElementById(id);
const percent = share => `${(100 * share).toFixed(1)} %`;
let known = false, latest = 0;

function headers() {
  const key = at("key").value;
  return key ? {Authorization: `Bearer ${key}`} : {};
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function bars(list, rows) {
  list.replaceChildren(...rows.map(([name, share]) => {
    const item = document.createElement("li"), bar = document.createElement("progress");
    bar.max = 1;
    bar.value = share;
    bar.setAttribute("aria-label", name);
    item.append(element("span", name), bar, element("span", percent(share)));
    return item;
  }));
}

function show(details) {
  at("label").textContent = details.abstained ? "No answer: not sure enough" : details.answers[0].label;
  bars(at("scores"), details.answers.map(one => [one.label, one.score]));
  at("summary").textContent = `Ran ${details.experts_run.join(" → ")} at the operating point ${details.operating_point}: `
    + `${details.gmacs.toPrecision(3)} GMACs for this image.`
    + (details.confidence === null ? "" : ` It is right with a probability of ${percent(details.confidence)}.`);
  const rows = details.decisions.map(one => {
    const scores = Object.entries(one.scores).map(([name, score]) => `${name} ${score.toFixed(2)}`).join(", ");
    const what = one.chosen === "answer" ? "it answered" : `${one.chosen} was asked next`;
    return `After ${one.after}, ${what}: the highest score won (${scores}).`;
  });
  const last = details.experts_run.at(-1);
  if (!details.decisions.length || details.decisions.at(-1).chosen !== "answer")
    rows.push(`${last} answered: nothing was left to decide.`);
  at("decisions").replaceChildren(...rows.map(row => element("li", row)));
}

async function classify(file) {
  const turn = ++latest;
  if (at("preview").src) URL.revokeObjectURL(at("preview").src);
  at("preview").src = URL.createObjectURL(file);
  at("preview").hidden = false;
  at("invitation").hidden = true;
  const asked = new URLSearchParams({details: "true"});
  if (at("point").value) asked.set("operating_point", at("point").value);
  let answer, problem = "";
  try {
    const response = await fetch(`./?${asked}`, {
      method: "POST", body: file, headers: {"Content-Type": "application/octet-stream", ...headers()}});
    answer = await response.json();
    if (!response.ok) problem = answer.error;
  } catch {
    problem = "The server cannot be reached.";
  }
  if (turn !== latest) return;
  at("error").textContent = problem;
  at("error").hidden = !problem;
  at("found").hidden = Boolean(problem);
  if (!problem) show(answer);
  refresh();
}

async function refresh() {
  const response = await fetch("info", {headers: headers()}).catch(() => null);
  if (!response) return;
  if (response.status === 401) {
    at("key-field").hidden = false;
    return;
  }
  const info = await response.json(), live = info.live;
  if (!known) {
    known = true;
    at("model").textContent = `${info.model}: ${info.experts.length} experts, ${info.labels.length} labels`;
    at("point").append(...info.operating_points.map(one => {
      const option = element("option", one.accuracy === null ? one.name
        : `${one.name}: ${percent(one.accuracy)} at ${one.gmacs.toPrecision(3)} GMACs`);
      option.value = one.name;
      return option;
    }));
  }
  at("live").textContent = (live.answered ? `${live.answered} images were answered, at ${live.gmacs.toPrecision(3)} GMACs each`
    : "Nothing was answered yet") + `; operating point ${info.operating_point}; ${live.waiting} images wait.`;
  bars(at("shares"), Object.entries(live.expert_shares));
}

at("file").addEventListener("change", () => at("file").files.length && classify(at("file").files[0]));
at("point").addEventListener("change", () => at("file").files.length && classify(at("file").files[0]));
at("key").addEventListener("change", refresh);
for (const name of ["dragover", "dragleave", "drop"])
  document.addEventListener(name, event => {
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) {
      at("file").files = event.dataTransfer.files;
      classify(event.dataTransfer.files[0]);
    }
  });
refresh();
setInterval(() => document.hidden || refresh(), 2000);
