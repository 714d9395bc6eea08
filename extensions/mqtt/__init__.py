"""The service over MQTT: the interfaces generic_mqtt and generic_mqtts (contract, "MQTT").

`bridge.py` is the extension, `broker.py` says where the broker is and what is found there,
`messages.py` what a request and its answer look like, `connection.py` how they come and go, and
`certificates.py` whose certificates are valid.
"""
