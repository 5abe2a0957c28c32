"""What PPO makes of samples: pure functions on some of an iteration's samples, and sums that make them those of all.

The workers that hold the samples run them; what depends on the whole batch (whitening, metrics) is in the sums that the
driver adds up. So no token passes through the driver.
"""
