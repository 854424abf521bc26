/** Pictures that were sent to the service: kept until the page is left, for the case that the service loses them. */

import { sendPicture } from "./api.js";

const files = new Map();

/** Send a picture and return its key. Raises Fault. */
export async function send(file) {
  const { upload } = await sendPicture(file);
  files.set(upload, file);
  return upload;
}

/** Send a picture again that the service has lost; false if this page no longer has it. Raises Fault. */
export async function sendAgain(key) {
  return files.has(key) && (await send(files.get(key))) === key;
}
