"""Encrypted inference with a linear layer: `cohortium serve` and `cohortium predict --encrypted`.

A clinic computes an image's features, which are fixed and public. It encrypts them with CKKS (Cheon
et al. 2017) under a key that it alone has. The model's owner multiplies the ciphertext by the
weights of the linear layer, and cannot read it. The clinic decrypts the outputs.

Module `scheme` has the parameters and the arrays of the library, and `protocol` the two parties.
Module `linear_head` has the owner's weights, and `public_model` the clinic's part. Modules
`service` and `client` are the transport. `docs/encrypted.md` has the threat model.
"""
