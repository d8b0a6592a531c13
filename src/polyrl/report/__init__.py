"""The report: statistics, sentences and one offline page, made from run folders and nothing else.

`polyrl.report.runs` reads folders, `polyrl.report.statistics` computes, `polyrl.report.findings` puts the result in
words and `polyrl.report.page` writes the page. Nothing here imports torch.
"""
