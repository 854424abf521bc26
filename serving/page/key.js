/** The dialog that asks for an API key. */

import { byId } from "./dom.js";

/** Ask for a key; `refused` says whether one was given and not accepted. Null if the person gives none. */
export function askForKey(refused) {
  const dialog = byId("key");
  byId("key-note").textContent = refused
    ? "That key was not accepted. Ask whoever runs the service for one."
    : "Ask whoever runs it for one. It is kept in this tab until you close it.";
  byId("key-value").value = "";
  byId("key-cancel").onclick = () => dialog.close("");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "given" ? byId("key-value").value.trim() : null);
  });
}
