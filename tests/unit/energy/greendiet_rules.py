"""GreenDIET's thresholds as rules.

Heat above 25 °C leaves 20 % of the nodes; a price index (1.0 is the dearest) above 0.8 leaves
40 %, above 0.5 leaves 70 %.
"""

from nuage.model.energy import ShareRule

GREENDIET_RULES = (
    ShareRule(
        name="heat", figure="temperature_c", above=25.0, share=0.2, hysteresis=1.0, urgent=True
    ),
    ShareRule(name="dear", figure="price_index", above=0.8, share=0.4, hysteresis=0.05),
    ShareRule(name="rather dear", figure="price_index", above=0.5, share=0.7, hysteresis=0.05),
)
