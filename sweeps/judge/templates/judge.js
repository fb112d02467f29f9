"use strict";

const ANSWER_OF_KEY = {
  ArrowLeft: "left", a: "left",
  ArrowRight: "right", b: "right",
  ArrowDown: "neither", 0: "neither", " ": "neither",
};
const main = document.querySelector("main");
let isBusy = false;

const shown = () => main.querySelector("[data-question]");
const pictures = () => [...main.querySelectorAll(".sides img")];

function say(trouble) {
  const place = document.getElementById("trouble");
  place.textContent = trouble;
  place.hidden = !trouble;
}

function announce() {
  document.getElementById("said").textContent = shown().dataset.said;
}

// A new question comes when both of its pictures can be seen, so that neither side is first.
async function show(html) {
  const next = document.createElement("div");
  next.innerHTML = html;
  await Promise.allSettled([...next.querySelectorAll(".sides img")].map((image) => image.decode()));
  const focused = document.activeElement?.matches(":focus-visible") ? document.activeElement.id : "";
  main.replaceChildren(...next.childNodes);
  if (!main.querySelector("#question")) window.scrollTo(0, 0);
  if (focused) (document.getElementById(focused) ?? main.querySelector("button"))?.focus({ focusVisible: true });
  announce();
}

async function answer(button) {
  const isVote = button.closest(".choices") !== null;
  if (isBusy || (isVote && !pictures().every((image) => image.complete && image.naturalWidth))) return;
  isBusy = true;
  button.classList.add("is-chosen");
  try {
    const response = await fetch("answer", {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Dreamsweep-Token": document.documentElement.dataset.token },
      body: JSON.stringify({ question: shown().dataset.question, answer: button.dataset.answer }),
    });
    const text = await response.text();
    if (response.ok) {
      say("");
      await show(text);
    } else if (response.status === 404) {
      say("This page is of an earlier call of the command: open the address that it prints now.");
    } else {
      say(`Nothing was written down: ${text}`);
    }
  } catch {
    say("No answer: is `dreamsweep judge` still running? Start it again and open the address that it prints.");
  }
  button.classList.remove("is-chosen");
  isBusy = false;
}

main.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-answer]");
  if (button) answer(button);
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.key === " " && event.target.matches("button:focus-visible")) return; // as the button that has the focus has it
  const wanted = ANSWER_OF_KEY[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const button = wanted && main.querySelector(`.choices button[data-answer="${wanted}"]`);
  if (!button) return;
  event.preventDefault();
  if (!event.repeat) answer(button); // a key that is held down is one answer
});

announce();
