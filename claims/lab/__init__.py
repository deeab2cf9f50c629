"""The machinery of claims: experiments in bulk, statistics, figures and the results page."""
