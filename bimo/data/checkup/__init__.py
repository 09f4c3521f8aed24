"""What is wrong with data, in plain words with file, row and mend, and a cleaned copy of it. Loads no torch."""

from bimo.data.checkup.clean import clean
from bimo.data.checkup.examination import Examination, check, examine, quick_check
from bimo.data.checkup.findings import Finding, Report
from bimo.data.checkup.report_lines import lines_of, verdict

__all__ = ["Examination", "Finding", "Report", "check", "clean", "examine", "lines_of", "quick_check", "verdict"]
