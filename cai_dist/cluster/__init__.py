"""Ray: the cluster, worker groups, waits with deadlines, placement, lost nodes and jobs."""
