# Linear probing of the class token beside Efficient Probing with 32 queries.
model = dict(
    type="Probe",
    num_classes=1000,
    heads=dict(linear=dict(pooling="cls"), ep=dict(num_queries=32)),
)
