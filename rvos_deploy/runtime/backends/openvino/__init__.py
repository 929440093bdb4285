"""Run graphs by OpenVINO on the CPU."""
