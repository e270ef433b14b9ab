"""`kvpolicy demo`: see what a policy keeps of an image, and what it costs in right answers."""
