/** Pictures that were sent to the service: each once, and small ones of them for as long as the tab is open. */

import { sendPicture } from "./api.js";

const SIDE = 480;
const PREFIX = "mindseye-picture-";
/** The files themselves, by the service's key, until the page is left. */
const files = new Map();

/** Send a picture and return its key. Raises Fault. */
export async function send(file, signal) {
  const { upload } = await sendPicture(file, signal);
  files.set(upload, file);
  await keepSmall(upload, file);
  return upload;
}

/** Send a picture again that the service has lost; false if this page no longer has it. */
export async function sendAgain(key, signal) {
  if (!files.has(key)) return false;
  return (await sendPicture(files.get(key), signal)).upload === key;
}

/** An address of a small picture of it; null if this tab has none. */
export const smallOf = (key) => sessionStorage.getItem(PREFIX + key);

async function keepSmall(key, file) {
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    return; // the service reads more kinds of files than a browser
  }
  const scale = Math.min(1, SIDE / Math.max(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(scale * picture.width));
  canvas.height = Math.max(1, Math.round(scale * picture.height));
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  try {
    sessionStorage.setItem(PREFIX + key, canvas.toDataURL("image/webp", 0.85));
  } catch {
    for (const name of Object.keys(sessionStorage)) if (name.startsWith(PREFIX)) sessionStorage.removeItem(name);
  }
}
