# SPDX-License-Identifier: Apache-2.0
"""What was learned and what was forgotten: tasks, how variants solve them, statistics; and speed."""
