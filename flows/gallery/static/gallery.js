// The pages work without this: it moves the slider, switches lines of the loss curve and keeps the page of a running job or night new.
"use strict";

const main = document.getElementById("main");

function setUpReveal() {
  for (const reveal of main.querySelectorAll(".reveal")) {
    const picture = reveal.querySelector("img");
    reveal.style.setProperty("--shape", picture.getAttribute("width") / picture.getAttribute("height"));
    const range = reveal.querySelector("input");
    if (!range) continue;
    reveal.classList.add("ready");
    const cut = () => reveal.style.setProperty("--cut", `${range.value}%`);
    range.addEventListener("input", cut);
    cut();
  }
}

function switchLines() {
  for (const box of main.querySelectorAll("input[data-shows]")) {
    for (const line of main.querySelectorAll("[data-line]")) {
      if (line.dataset.line === box.dataset.shows) line.toggleAttribute("hidden", !box.checked);
    }
  }
}

// Only what has changed is replaced, so that the focus, the slider and the check boxes stay as they are.
function takeOver(page) {
  const fresh = page.getElementById("main");
  main.toggleAttribute("data-refresh", fresh.hasAttribute("data-refresh"));
  if (!fresh.hasAttribute("data-refresh") || Boolean(main.querySelector("#curve")) !== Boolean(fresh.querySelector("#curve"))
      || Boolean(main.querySelector("#progress")) !== Boolean(fresh.querySelector("#progress"))) {
    main.replaceChildren(...fresh.childNodes);
    setUpReveal();
  } else {
    for (const part of main.querySelectorAll("[data-live]")) {
      const other = fresh.querySelector(`#${part.id}`);
      if (other && other.innerHTML !== part.innerHTML) {
        part.className = other.className;
        part.replaceChildren(...other.childNodes);
      }
    }
  }
  switchLines();
}

async function refresh(pause) {
  if (!document.hidden) {
    try {
      const answer = await fetch(location.href, { cache: "no-store" });
      if (answer.ok) takeOver(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch {
      // The gallery is away: the next try may find it again.
    }
  }
  if (main.hasAttribute("data-refresh")) setTimeout(refresh, pause, pause);
}

setUpReveal();
main.addEventListener("change", (event) => {
  if (event.target.matches("input[data-shows]")) switchLines();
});
switchLines();
if (main.dataset.refresh) {
  const pause = Number(main.dataset.refresh);
  setTimeout(refresh, pause, pause);
}
