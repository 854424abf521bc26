/** The three ways in which a picture is handed to the page: chosen, dropped, pasted. */

import { byId } from "./dom.js";

const hover = (on) => byId("drop").classList.toggle("on", on);
const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");

/** Call `take` with the list of files that the person hands over. */
export function takeFiles(take) {
  byId("choose").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", () => {
    take(byId("file").files);
    byId("file").value = "";
  });
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length) return;
    event.preventDefault();
    take(event.clipboardData.files);
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
    take(event.dataTransfer.files);
  });
}
