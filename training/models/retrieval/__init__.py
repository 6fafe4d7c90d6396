"""Deep Retrieval: items as clusters of learned paths (Gao et al., arXiv 2007.07203, CIKM 2021).

`network.py` has p(path | user) and the beam search, `scores.py` the streaming path scores of items, `mapping.py` the
choice of each item's paths by them, `start.py` the first paths, `slots.py` the table path -> items, and `search.py` the
retrieval of items. A path (c_1 .. c_D) of nodes 0 .. K-1 is the number sum c_d K^(D-d); no path is -1.
"""
