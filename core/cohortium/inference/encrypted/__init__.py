"""Encrypted inference with one layer: `cohortium serve` and `cohortium predict --encrypted`.

A clinic computes an image's features, which are fixed and public. It encrypts them with CKKS (Cheon
et al. 2017) under a key that it alone has. The model's owner multiplies the ciphertext by the
weights of the layer, and cannot read it. The clinic decrypts the outputs.

Module `scheme` has the parameters and the arrays of the library, and `protocol` the two parties.
Module `served_head` has the owner's weights, `head_form` the numbers that travel, and
`public_model` the clinic's part. Modules `service` and `client` are the transport.
`docs/encrypted.md` has the threat model.
"""
