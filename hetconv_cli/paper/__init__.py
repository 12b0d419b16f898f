"""The paper's tables: the networks of each row built and counted here, and what was printed set beside them.

recipes and rebuilt make our figures and know nothing of the printed ones; printed alone reads those; beside joins both.
"""
