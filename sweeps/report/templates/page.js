"use strict";

// --- the leaderboard -------------------------------------------------------------------------------------------------

function sortTable(header, descending) {
  const column = header.cellIndex;
  const body = header.closest("table").tBodies[0];
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return descending ? -order : order;
  };
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  body.append(...[...body.rows].sort(compare));
}

function showTrial(trial) {
  const rows = [...document.querySelectorAll("tr[data-trial]")].filter((row) => row.dataset.trial === trial);
  const row = rows.find((row) => row.checkVisibility()) ?? rows[0];
  if (!row) return;
  const details = row.closest("details");
  if (details) details.open = true;
  row.classList.remove("is-target");
  row.scrollIntoView({ block: "center", behavior: "smooth" });
  requestAnimationFrame(() => row.classList.add("is-target"));
}

// --- pictures --------------------------------------------------------------------------------------------------------

function showSteps(part) {
  const slider = part.querySelector(".steps input");
  if (!slider) return;
  const atBest = part.querySelector(".steps button").getAttribute("aria-pressed") === "true";
  const step = Number(slider.dataset.steps.split(" ")[slider.value]);
  slider.closest(".steps").querySelector("output").textContent = atBest ? "" : step;
  for (const cell of part.querySelectorAll("td.cell")) {
    const shots = [...cell.querySelectorAll(".shot")];
    const wanted = atBest ? Number(cell.dataset.best) : step;
    const reached = shots.filter((shot) => Number(shot.dataset.step) <= wanted);
    const shown = reached.at(-1) ?? shots[0];
    for (const shot of shots) shot.hidden = shot !== shown;
  }
  for (const grid of part.querySelectorAll(".gallery")) {
    const firstCells = grid.tBodies[0].rows[0].cells;
    for (const header of grid.tHead.rows[0].cells) {
      const said = header.querySelector(".shown-step");
      const shot = firstCells[header.cellIndex].querySelector(".shot:not([hidden])");
      if (said && shot) said.textContent = `step ${shot.dataset.step}`;
    }
  }
}

const LOSSLESS_SIDE = 128; // up to here a picture is shown with its own pixels

function keepPixels(image) {
  if (image.naturalWidth) image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) <= LOSSLESS_SIDE);
}

document.addEventListener("load", (event) => event.target.matches?.("img") && keepPixels(event.target), true);

const dialog = document.createElement("dialog");
dialog.append(document.createElement("img"), document.createElement("p"));
dialog.addEventListener("click", () => dialog.close());
document.body.append(dialog);
let enlarged = null;

function enlarge(image) {
  enlarged = image;
  const [picture, text] = dialog.children;
  picture.src = image.dataset.enlarged || image.src;
  picture.alt = image.alt;
  text.textContent = [image.dataset.whose, image.dataset.scores, image.alt].filter(Boolean).join(" · ");
  if (!dialog.open) dialog.showModal();
}

document.addEventListener("keydown", (event) => {
  const forward = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (dialog.open && forward) {
    const images = [...document.querySelectorAll("main img")].filter((image) => image.checkVisibility());
    const next = images[images.indexOf(enlarged) + forward];
    if (next) enlarge(next);
  } else if (event.key === "Enter" && event.target.matches("main img")) {
    enlarge(event.target);
  }
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (event.target.matches("main img")) {
    enlarge(event.target);
  } else if (button?.closest("th")) {
    const header = button.closest("th");
    sortTable(header, header.getAttribute("aria-sort") !== "descending");
  } else if (button?.closest(".steps")) {
    button.setAttribute("aria-pressed", "true");
    showSteps(button.closest("section"));
  }
});

document.addEventListener("input", (event) => {
  if (!event.target.matches(".steps input")) return;
  event.target.closest(".steps").querySelector("button").setAttribute("aria-pressed", "false");
  showSteps(event.target.closest("section"));
});

// --- plots -----------------------------------------------------------------------------------------------------------

const probe = document.createElement("i");
probe.hidden = true;
document.body.append(probe);

function resolveColours(value) {
  if (typeof value === "string") {
    const name = /^var\((--[a-z-]+)\)$/.exec(value);
    if (!name) return value;
    probe.style.color = value;
    return getComputedStyle(probe).color;
  }
  if (Array.isArray(value)) return value.map(resolveColours);
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, resolveColours(inner)]));
  }
  return value;
}

const isTouch = matchMedia("(pointer: coarse)");

function drawPlots() {
  const source = document.getElementById("figures");
  if (!window.Plotly || !source) return;
  const figures = JSON.parse(source.textContent);
  for (const place of document.querySelectorAll("[data-figure]")) {
    const figure = figures[place.dataset.figure];
    if (!figure) continue;
    const { data, layout } = resolveColours(figure);
    layout.font.family = getComputedStyle(document.body).fontFamily;
    layout.dragmode = isTouch.matches ? false : "zoom"; // a finger on a plot shall scroll the page
    const isNew = !place.classList.contains("js-plotly-plot");
    Plotly.react(place, data, layout, {
      responsive: true,
      displaylogo: false,
      displayModeBar: isTouch.matches ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      showSendToCloud: false, // nothing of a run leaves the page
      plotlyServerURL: "",
      toImageButtonOptions: { format: "svg", filename: place.dataset.figure },
    });
    if (isNew) place.on("plotly_click", ({ points }) => points[0]?.customdata && showTrial(points[0].customdata));
  }
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPlots);

async function loadPlotly() {
  const packed = document.getElementById("plotly");
  if (packed) {
    const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    packed.remove();
  }
  drawPlots();
}

// --- following a run -------------------------------------------------------------------------------------------------

const main = document.querySelector("main");
const SECONDS_BETWEEN_LOOKS = 2;

function partsOf(root) {
  return new Map([...root.children].filter((part) => part.id).map((part) => [part.id, part]));
}

function carryOver(old, fresh) {
  const summaries = (part) => [...part.querySelectorAll("details")];
  summaries(old).forEach((details, i) => {
    if (details.open && summaries(fresh)[i]) summaries(fresh)[i].open = true;
  });
  const tables = fresh.querySelectorAll("table.leaderboard");
  old.querySelectorAll("table.leaderboard").forEach((table, i) => {
    const sorted = table.tHead.querySelector("[aria-sort]");
    const header = sorted && tables[i]?.tHead.rows[0].cells[sorted.cellIndex];
    if (header) sortTable(header, sorted.getAttribute("aria-sort") === "descending");
  });
  const [slider, freshSlider] = [old, fresh].map((part) => part.querySelector(".steps input"));
  if (slider && freshSlider) {
    const step = slider.dataset.steps.split(" ")[slider.value];
    const place = freshSlider.dataset.steps.split(" ").indexOf(step);
    if (place >= 0) freshSlider.value = place;
    const pressed = old.querySelector(".steps button").getAttribute("aria-pressed");
    fresh.querySelector(".steps button").setAttribute("aria-pressed", pressed);
  }
}

function enhance(root) {
  for (const image of root.querySelectorAll("img")) if (image.complete) keepPixels(image);
  for (const controls of root.querySelectorAll(".steps")) controls.hidden = false;
  for (const part of root.querySelectorAll("#pictures")) showSteps(part);
}

function follow() {
  let sources = new Map([...partsOf(main)].map(([id, part]) => [id, part.outerHTML]));
  let version = null;

  function put(html) {
    const content = new DOMParser().parseFromString(`<main>${html}</main>`, "text/html").querySelector("main");
    const shown = partsOf(main);
    const fresh = partsOf(content);
    const newSources = new Map([...fresh].map(([id, part]) => [id, part.outerHTML]));
    for (const [id, part] of shown) if (!fresh.has(id)) part.remove();
    let before = null;
    for (const [id, part] of fresh) {
      const old = shown.get(id);
      let placed = old;
      if (!old || newSources.get(id) !== sources.get(id)) {
        placed = document.adoptNode(part);
        if (old) {
          carryOver(old, placed);
          for (const plot of old.querySelectorAll(".js-plotly-plot")) Plotly.purge(plot);
          old.replaceWith(placed);
        }
      }
      if (before ? before.nextElementSibling !== placed : main.firstElementChild !== placed) {
        before ? before.after(placed) : main.prepend(placed);
      }
      before = placed;
    }
    sources = newSources;
    enhance(main);
    drawPlots();
  }

  async function ask() {
    const headers = version ? { "If-None-Match": version } : {};
    try {
      return await fetch(main.dataset.follow, { headers, cache: "no-store" });
    } catch {
      return null; // the server has ended; what is shown is the last that it said
    }
  }

  async function look() {
    try {
      const answer = await ask();
      main.classList.toggle("is-cut-off", !answer || answer.status >= 400);
      if (answer?.status === 200) {
        version = answer.headers.get("ETag");
        put(await answer.text());
      }
    } finally {
      setTimeout(look, SECONDS_BETWEEN_LOOKS * 1000);
    }
  }
  look();
}

if (main.dataset.follow) follow(); // first: it keeps in mind what the server sent, before anything is changed
enhance(main);
loadPlotly();
