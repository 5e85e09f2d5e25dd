"""What is compared: each system proxies one port to two servers and can be told to send traffic to the other one."""
