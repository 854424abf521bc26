/** The three ways in which a picture is handed to the page: chosen, dropped, pasted. */

import { byId } from "./dom.js";

const hover = (on) => byId("drop").classList.toggle("on", on);
const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");

let awaited = null;

/** Have files chosen, apart from those that `takeFiles` takes. */
export function chooseFiles() {
  byId("file").click();
  return new Promise((resolve) => (awaited = resolve));
}

/** Call `take` with the files that the person hands over. */
export function takeFiles(take) {
  byId("choose").addEventListener("click", () => {
    awaited = null; // who chose nothing then is no longer waited for
    byId("file").click();
  });
  byId("file").addEventListener("change", () => {
    (awaited ?? take)([...byId("file").files]);
    awaited = null;
    byId("file").value = "";
  });
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length) return;
    event.preventDefault();
    take([...event.clipboardData.files]);
  });
  document.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    hover(true);
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && hover(false));
  document.addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    hover(false);
    take([...event.dataTransfer.files]);
  });
}
