"""Results for people: tables on the terminal, figures, one page to read, and exports.

    views       what is shown, derived once from results.json
    seeds       the results of several seeds as one: means and intervals
    tables      the terminal
    report      the page, eval/report.html
    comparison  several runs on one page
    figures     the look of all figures
    drawings    the figures of a run; those of what is inside it are in `inside`
    background  a process that draws figures while `eval.py` measures
    exports     CSV files and TensorBoard

It imports everything but `tools`.
"""
