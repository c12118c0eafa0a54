"""The zoo: what every model costs, what was published for it, and how closely it was checked.

`make zoo` writes the tables of models into their pages, and the data of the site's explorer. All figures come from
elsewhere: the models themselves, `vssm.published`, and the measurements in `benchmarks/results`.
"""

from .costs import classifier_cost, dense_cost, disagreement, network_cost, recipes
from .explorer import explorer_data
from .tables import pages

__all__ = ["classifier_cost", "dense_cost", "disagreement", "explorer_data", "network_cost", "pages", "recipes"]
