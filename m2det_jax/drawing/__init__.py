"""Drawing on pictures: boxes with their names, and text in a font that is shipped."""
