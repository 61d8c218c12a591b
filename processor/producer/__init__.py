"""Submitting transactions.

submit               What a request handler calls: put transactions into the buffer and wake the d
"""
