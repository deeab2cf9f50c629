"""Results for people: tables on the terminal, figures, and one page to read.

    tables      the terminal
    report      eval/report.html
    figures     the look of all figures; drawings, inside: the figures of a run

It imports everything but `tools`.
"""
