"""Neighbourhood attention: the rule, and the forms that compute it."""
