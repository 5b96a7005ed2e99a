"""ConCare and the models it is compared with: one member, and ensembles of them."""
