"""One run: its folder, its stages in order, its services, what a person sees of them."""
