"""Models behind small adapters: the VLM, the vision encoder and the generator, on the devices that are there."""
