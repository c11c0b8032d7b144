"""Units of information: nats inside, bits where people and files count."""

import math

# Nats in a bit.
LN2 = math.log(2.0)
