"""Inference of whole networks on secret shares: `--parties` of `cohortium serve` and `predict`.

The clinic has the image and the owner has the weights. Both split theirs into shares, on which the
parties compute the network with a protocol of the library SPU (Ma et al. 2023). The clinic alone
receives all shares of the outputs.

Module `parties` has the file of the parties' addresses, and `network` the public list of a
network's operations. Module `party` is a program that runs in a Python with SPU, perhaps another
one than Cohortium's, and `process` starts it. Module `sessions` has the three roles.
`docs/encrypted.md` has the threat model.
"""
