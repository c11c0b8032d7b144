"""Units of information: nats inside, bits and bytes where people and files count."""

import math

# Nats in a bit.
LN2 = math.log(2.0)
BITS_PER_BYTE = 8
