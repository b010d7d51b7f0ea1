"use strict";

const here = location.href.replace(/docs$/, "");

function element(name, ...content) {
  const made = document.createElement(name);
  made.append(...content);
  return made;
}

function list(entries) {
  const made = document.createElement("dl");
  for (const [name, text] of entries) made.append(element("dt", name), element("dd", text));
  return made;
}

async function main() {
  const api = await (await fetch("openapi.json")).json();
  document.getElementById("title").textContent = `${api.info.title} ${api.info.version}`;
  document.getElementById("examples").textContent = [
    `curl --data-binary @cat.jpg ${here}`,
    `curl --form file=@cat.jpg '${here}?top_k=3&details=true'`,
    `python -c "from huggingface_hub import InferenceClient as C; print(C('${here}').image_classification('cat.jpg'))"`,
  ].join("\n");
  for (const [path, methods] of Object.entries(api.paths))
    for (const [method, one] of Object.entries(methods)) {
      const section = element("section", element("h2", `${method.toUpperCase()} ${path}`), element("p", one.summary));
      if (one.description) section.append(element("p", one.description));
      if (one.parameters) section.append(
        element("p", "Parameters, in the query, the form or `parameters` of the JSON:"),
        list(one.parameters.map(part => [part.name, part.schema.description])));
      if (one.requestBody) section.append(element("p", `Bodies: ${Object.keys(one.requestBody.content).join(", ")}`));
      section.append(list(Object.entries(one.responses).map(([status, part]) => [status, part.description])));
      document.getElementById("paths").append(section);
    }
}

main();
