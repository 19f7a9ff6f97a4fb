"""English words without content of their own, folded. A forbidden phrase never consists of them alone."""

from __future__ import annotations

STOP_WORDS = frozenset(
    """
    a about above across after again against all almost along already also although always am among an
    and another any anybody anyone anything are aren around as at away back be became because become
    becomes been before behind being below between beyond both but by came can cannot could couldn d did
    didn do does doesn doing don done down during each either else enough etc even ever every everyone
    everything except few for from further get gets getting go goes going gone got had hadn has hasn
    have haven having he hence her here hers herself him himself his how however i if in indeed instead
    into is isn it its itself just least less let like ll m made make makes making many may maybe me
    might mine more most much must my myself near neither never next no nobody none nor not nothing now
    o of off often on once one only onto or other others our ours ourselves out over own per perhaps
    quite rather re s said same say says several shall she should shouldn since so some someone
    something sometimes somewhat still such t than that the their theirs them themselves then there
    therefore these they thing things this those though through throughout thus to together too toward
    towards two three under until up upon us use used uses using ve very was wasn way ways we well were
    weren what whatever when where whereas whether which while who whom whose why will with within
    without won would wouldn yes yet you your yours yourself yourselves okay ok true false mr mrs ms dr
    prof four five six seven eight nine ten first second third
    """.split()
)

# Small words that may occur inside a name or title, in their usual spelling there.
LINKS = frozenset(
    """
    of the for in and to on with a an at by & de da das del della delle dem den der des di do dos du e
    el la las le les los van von ter ten zu zum zur y bin bint ibn abu al ul af av och og i
    """.split()
)
