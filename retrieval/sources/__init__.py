"""Where images come from: what a source lists, how an input is read, how one image is looked up again."""
