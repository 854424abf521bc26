/** What the service says of itself: null until it has said it, which no search waits for. */

import * as api from "./api.js";

export let info = null;

export const learn = async () => (info = await api.info());

export const mostResults = () => info?.limits.k ?? 1000;
export const imaginedAtOnce = () => info?.images ?? 8;
export const usualWeight = () => info?.weight ?? 0.5;
